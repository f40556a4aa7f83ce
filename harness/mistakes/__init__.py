"""What AP does not say: which kinds of error cost how much, which threshold suits, what duplicates do.

All of it comes from detections and ground truth alone, in numpy, for many images at once. `sides` puts both into
columns, `batches` lays images beside each other, `matching` tells right from wrong and `kinds` which error a wrong
detection is (TIDE); `average_precision` is what an error costs, `thresholds` holds the best F1, `regressed` the recall
of best-regressed detections, `duplicates` what NMS would take away. `measured` has all of one branch.
docs/metrics.md tells every choice. `harness.figures.matching` matches single images for pictures.
"""

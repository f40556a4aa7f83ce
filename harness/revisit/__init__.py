"""Trained detectors are looked at again (`codetr analyse`), or taken along. Nothing is trained here.

Read in this order: `asked` (what the command line names), `trained` and `key_report` (weights, whatever their names),
`opened` (the images they are shown, and what is found there), `kept` (where that goes). A trial of the store gets the
analysis that it lacks into its own record, as if it had made it itself; anything else is written to a folder.

Taken along: `classes` (which its labels are), `detecting` (images of one's own), `onnx_file` (other programs).
"""

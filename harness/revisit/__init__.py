"""Trained detectors are looked at again (`codetr analyse`), or taken along. Nothing is trained here.

Read in this order: `commands`, `asked` (what the command line names), `configured` and `described` (the configuration
of a file of weights), `trained` and `key_report` (weights, whatever their names), `ready` (whether it can be done
here), `opened` (the images they are shown, and what is found there), `mistakes` (errors of a trial that has not
measured them), `kept` (where all that goes), `beside` (published numbers). A trial of the store gets the analysis
that it lacks into its own record, as if it had made it itself; anything else is written to a folder.

Taken along: `classes` (which its labels are), `detecting` (images of one's own), `onnx_file` (other programs); and
`taken`, the other way round (released weights become ours).
"""

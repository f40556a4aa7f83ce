"""Seeds go where they decide: `codetr decide` trains the claims of a file look by look, until each is settled.

`commands` are what a person asks. `questions` are the claims with what was seen of them, `kept` in a file beside the
grid's; `sound` says whether looks may be taken, `rounds` trains what the next ones need and takes them; `told` says how
things stand. The rules are those of `harness.report.sequential`.
"""

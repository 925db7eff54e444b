"""The papers' rows in miniature, several seeds each.

    python -m scripts.ablation [STUDY ...] [--seeds=3] [--folder=DIR] [--write]

`__main__` runs what has not been run, row by row: a run that was stopped goes on.
`results` reads what the runs left, and makes the table, which `--write` puts between
the markers of its study in docs/ablation.md.
"""

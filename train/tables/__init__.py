"""The papers' tables beside our networks: `python -m train.tables`.

paper        what the DCNv2 paper prints
first_paper  what the DCNv1 paper prints
cost         parameters and multiply-adds of a configured network
columns      what rows of DCNv2's tables add, and which printed figures that agrees with
"""

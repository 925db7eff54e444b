"""The DCNv2 paper's tables beside our networks: `python -m train.tables`.

paper      what is printed
cost       parameters and multiply-adds of a configured detector
columns    what rows add, and which printed figures that agrees with
"""

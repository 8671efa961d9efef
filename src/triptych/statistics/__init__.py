"""How sure a number is: intervals, tests, logistic fits, calibration."""

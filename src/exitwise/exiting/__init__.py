"""Who leaves where: the exit rule, the calibration of its thresholds, and the runner that really leaves."""

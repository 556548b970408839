"""Words that several modules say alike. Imports without torch."""

FORGOTTEN = "forgotten: taken out of the data"  # why a clip carries no loss though nothing is wrong with it
DAMAGED_COMMIT = "restore the file, or remove that commit's folder to go on from the one before"

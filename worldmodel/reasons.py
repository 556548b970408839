"""Why a clip carries no loss though nothing is wrong with it. Imports without torch."""

FORGOTTEN = "forgotten: taken out of the data"

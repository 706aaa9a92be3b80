"""Does a text reach the answer? Final-answer spans, whole-span grading, killable workers, certificates."""

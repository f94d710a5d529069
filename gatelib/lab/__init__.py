"""What chapters share: training, instruments, figures, and the source shown on the page.

Imports its own modules, which may import any floor.
Must not be imported by any floor: only chapters, tests and benchmarks use it.
"""

try:
    from gatelib.lab import figures
    from gatelib.lab.agreement import Agreement, agreement
    from gatelib.lab.film import Film, film
    from gatelib.lab.gradients import called, gradients, over_time
    from gatelib.lab.instruments import (
        gradient_by_distance,
        half_life,
        jacobian_spectrum,
        saturation,
    )
    from gatelib.lab.passport import Passport, passport
    from gatelib.lab.record import Recording, record
    from gatelib.lab.scores import average_precision, word_f1
    from gatelib.lab.source import Source, show
    from gatelib.lab.study import StaleRecord, Study, recorded, study
    from gatelib.lab.tables import table
    from gatelib.lab.training import (
        History,
        Readout,
        Seeds,
        Sweep,
        accuracy,
        best_lr,
        seeds,
        train,
    )
    from gatelib.lab.verdict import Difference, Runs, rates
except ModuleNotFoundError as error:
    package = (error.name or "gatelib").split(".")[0]
    if package == "gatelib":
        raise
    message = f"gatelib.lab needs {package}: pip install 'gatelib[lab]'"
    raise ModuleNotFoundError(message, name=error.name) from error

__all__ = [
    "Agreement",
    "Difference",
    "Film",
    "History",
    "Passport",
    "Readout",
    "Recording",
    "Runs",
    "Seeds",
    "Source",
    "StaleRecord",
    "Study",
    "Sweep",
    "accuracy",
    "agreement",
    "average_precision",
    "best_lr",
    "called",
    "figures",
    "film",
    "gradient_by_distance",
    "gradients",
    "half_life",
    "jacobian_spectrum",
    "over_time",
    "passport",
    "rates",
    "record",
    "recorded",
    "saturation",
    "seeds",
    "show",
    "study",
    "table",
    "train",
    "word_f1",
]

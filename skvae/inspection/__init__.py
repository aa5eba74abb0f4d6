"""Pictures of fitted models: their training, their latent space and their results for rows.

Each class is a Display, as in scikit-learn. `from_estimator` computes and draws, the numbers are
attributes, and `plot` draws them again. An estimator is a `VAETransformer`, a Pipeline that ends in
one, or a fitted search over either. Rows are shown in the units of the Pipeline's input, since the
earlier steps of the Pipeline are inverted. If one of them has no inverse, rows are shown as the
VAETransformer sees them, and the labels name the last step before it. matplotlib (extra
``skvae[plot]``) is imported when something is drawn.
"""

from skvae.inspection._curves import LossCurveDisplay, SearchDisplay
from skvae.inspection._latent_space import ComponentsDisplay, LatentSpaceDisplay
from skvae.inspection._pictures import ReconstructionDisplay, SampleDisplay, TraversalDisplay

__all__ = [
    "ComponentsDisplay",
    "LatentSpaceDisplay",
    "LossCurveDisplay",
    "ReconstructionDisplay",
    "SampleDisplay",
    "SearchDisplay",
    "TraversalDisplay",
]

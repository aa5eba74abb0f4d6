"""Pictures of fitted models: what they learned, and what they make of data.

Each is a Display as scikit-learn's are: `from_estimator` computes and draws, what was computed are
attributes, and `plot` draws it again. An estimator is a `VAETransformer`, a Pipeline that ends in
one or a fitted search over either. Rows are shown in the units of the Pipeline's input, to which
its earlier steps bring them back; where one of these has no inverse, as the VAETransformer sees
them, and the labels name the step after which that is. matplotlib (extra ``skvae[plot]``) is
imported when something is drawn.
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

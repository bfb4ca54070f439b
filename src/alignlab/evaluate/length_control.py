"""The win rate of replies as long as the others': what is left when a judge's taste for length is taken out.

After Dubois et al. 2024, "Length-Controlled AlpacaEval" (arXiv:2404.04475, eq. 1 and 2). Per prompt i: y_i the verdict
(1 won, 0 lost, between them for ties and for means over replies), d_i the length of ours less the other's in
characters. The model is a logistic regression

    P(y_i = 1) = sigmoid(theta + phi * tanh(d_i / s)),   s the standard deviation (unbiased) of the d_i,

fitted by maximum likelihood with y_i as soft labels and a weak Gaussian prior on phi; the figure is its prediction at
d = 0, sigmoid(theta). Theirs differs in three ways. It has a term for the difficulty of each instruction, known from
the verdicts on many models: one comparison alone cannot tell it. It chooses an L1 penalty by cross-validation and
adds judgements of two deliberately long and short baselines, against policies that game it. It averages its
prediction over the instructions; ours is the same for all.
"""

import math
from collections.abc import Sequence

import numpy as np

from alignlab.errors import DataError
from alignlab.statistics import Interval, share_interval

PRIOR_PRECISION = 0.01
"""1 / variance of the prior on phi (scikit-learn's C = 100): felt only where length alone tells who wins."""


def length_controlled_win_rate(
    wins: Sequence[float],
    length_differences: Sequence[float],
    *,
    prior_precision: float = PRIOR_PRECISION,
    confidence: float = 0.95,
) -> Interval:
    """sigmoid(theta) of the module's model, over prompts.

    Its interval is sigmoid(theta +- t * se), with the sandwich error of theta (White 1982): right for soft labels, of
    which ties are some. Of n prompts and p parameters (2; 1 where all lengths are equal) it takes n / (n - p) times the
    variance, and t has n - p degrees of freedom (MacKinnon & White 1985, HC1); with n = p there is no interval.
    `stderr` is that of the win rate, by the delta method. Where all prompts have one verdict (all
    won, all tied, a single prompt) there is nothing to fit, and no residual to take an error from: that share, with
    its Wilson interval. NaN, without an interval, where all replies are longer (or shorter) by the same number of
    characters and not all prompts are won or lost: nothing tells what length does; with that number 0 it is the win
    rate itself.

    Raises:
        DataError: the two are not of one length, there are none, or a verdict is not from 0 to 1.
    """
    y, d = np.asarray(wins, dtype=np.float64), np.asarray(length_differences, dtype=np.float64)
    if len(y) != len(d) or not len(y) or not ((y >= 0) & (y <= 1)).all():
        raise DataError(f"length control: {len(y)} verdicts from 0 to 1 and {len(d)} lengths; expected one each")
    if y.min() == y.max() and y[0] in (0, 1):
        return share_interval(float(y.sum()), len(y), confidence=confidence)
    spread = float(d.std(ddof=1)) if len(d) > 1 else 0.0
    if spread == 0 and d[0] != 0:
        return Interval(math.nan, math.nan, math.nan, math.nan, len(y))
    if y.min() == y.max():
        return share_interval(float(y.sum()), len(y), confidence=confidence)
    features = np.stack([np.ones_like(d), np.tanh(d / spread) if spread > 0 else d], axis=1)  # (prompts, 2)
    theta, stderr = _fitted(features, y, np.diag([0.0, prior_precision]))
    from scipy.special import expit, stdtrit

    rate, freedom = float(expit(theta)), len(y) - (2 if spread > 0 else 1)
    if freedom < 1:
        return Interval(rate, math.nan, math.nan, math.nan, len(y))
    stderr *= math.sqrt(len(y) / freedom)
    half = float(stdtrit(freedom, 0.5 + confidence / 2)) * stderr
    return Interval(rate, float(expit(theta - half)), float(expit(theta + half)), rate * (1 - rate) * stderr, len(y))


def _fitted(features: np.ndarray, y: np.ndarray, prior: np.ndarray) -> tuple[float, float]:
    """The intercept at the maximum of likelihood and prior, and its sandwich error A^-1 B A^-1."""
    from scipy.optimize import minimize
    from scipy.special import expit

    def loss(weights: np.ndarray) -> float:
        logits = features @ weights
        return float((np.logaddexp(0, logits) - y * logits).sum() + weights @ prior @ weights / 2)

    def slope(weights: np.ndarray) -> np.ndarray:
        return features.T @ (expit(features @ weights) - y) + prior @ weights

    def curvature(weights: np.ndarray) -> np.ndarray:
        share = expit(features @ weights)
        return (features * (share * (1 - share))[:, None]).T @ features + prior

    weights = minimize(loss, np.zeros(2), jac=slope, hess=curvature, method="trust-exact", tol=1e-10).x
    scores = features * (expit(features @ weights) - y)[:, None]  # (prompts, 2): each prompt's part of the slope
    bread = np.linalg.pinv(curvature(weights))
    covariance = bread @ (scores.T @ scores) @ bread
    return float(weights[0]), math.sqrt(max(covariance[0, 0], 0.0))

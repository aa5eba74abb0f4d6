"""Are samples as good as rows? Classifiers that learn from samples, tested on real rows.

Tables of numbers, categories, counts and yes/no that statsmodels ships. Of each, 30 % of the rows
are for the test alone, the same at every repeat. A generative model sees the others, with the
target as one more column of categories, and gives as many rows. Two classifiers learn from the real
rows and from the rows of each model in turn: logistic regression, on one-hot and standardised
columns, and a random forest. Of each, the area under the ROC curve on the test rows. Repeats differ
in the seeds of the models and classifiers.

``skvae``
    `VAETransformer` with the likelihood of each column's kind and `SETTINGS`, for all tables; they
    were chosen by ``--validate``, which never sees the test rows: it takes 30 % of the training
    rows in their place.
``TVAE``
    That of the ctgan package, nothing set, with the columns that are categories or yes/no named.
``GaussianMixture``
    On one-hot and standardised columns; a category is the largest of its columns. 1 to 64
    components with full covariances, by the log-likelihood of a fifth of the training rows, and
    then fitted to all.

Counts that TVAE and GaussianMixture give are rounded, and at least 0. Seconds are those of a fit
with its samples. A peer that is not installed is named and left out, and so are the tables where
statsmodels is not.
"""

import argparse
import sys
import time
import warnings
from pathlib import Path

import machine
import numpy as np
import pandas as pd
import torch
from sklearn.compose import make_column_transformer
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from skvae import VAETransformer
from skvae.likelihoods import Bernoulli, Categorical, Columns, Gaussian, NegativeBinomial

HERE = Path(__file__).parent
TARGET = "target"
SETTINGS = {"n_importance_samples": 5}
N_COMPONENTS = (1, 2, 4, 8, 16, 32, 64)
WAYS = ("numbers", "counts", "yes_no", "categories")


# --- tables ---------------------------------------------------------------------------------


def fair():
    """A survey of 1974: affairs, by marriage and work."""
    import statsmodels.api as sm

    table = sm.datasets.fair.load_pandas().data
    table[TARGET] = table.pop("affairs") > 0
    return table, {
        "numbers": ["age", "yrs_married", "children", "educ"],
        "categories": ["rate_marriage", "religious", "occupation", "occupation_husb"],
    }


def anes96():
    """An election survey of 1996: the vote, by views and person."""
    import statsmodels.api as sm

    table = sm.datasets.anes96.load_pandas().data.drop(columns="popul")
    table[TARGET] = table.pop("vote") > 0
    return table, {
        "numbers": ["logpopul", "age", "educ", "income"],
        "counts": ["TVnews"],
        "categories": ["selfLR", "ClinLR", "DoleLR", "PID"],
    }


def randhie():
    """The RAND health insurance experiment: limited physically, by health, plan and visits.

    One row of each run of rows that agree in limits and diseases: a person's years.
    """
    import statsmodels.api as sm

    table = sm.datasets.randhie.load_pandas().data
    person = table[["physlm", "disea"]]
    table = table[(person != person.shift()).any(axis=1) & table["physlm"].isin([0, 1])]
    table = table.reset_index(drop=True)
    health = table[["hlthg", "hlthf", "hlthp"]]
    table["health"] = health.idxmax(axis=1).where(health.any(axis=1), "excellent")
    table[TARGET] = table.pop("physlm") > 0
    return table.drop(columns=health.columns), {
        "numbers": ["lpi", "fmde", "disea"],
        "counts": ["mdvis"],
        "yes_no": ["idp"],
        "categories": ["lncoins", "health"],
    }


TABLES = {"anes96": anes96, "fair": fair, "randhie": randhie}


def load(name):
    """A table with numbers as floats, counts as integers, and all else as strings."""
    table, kinds = TABLES[name]()
    kinds = {way: kinds.get(way, []) for way in WAYS}
    kinds["categories"] = [*kinds["categories"], TARGET]
    dtypes = {"numbers": float, "counts": int, "yes_no": int, "categories": str}
    table = table.astype({c: dtypes[way] for way, own in kinds.items() for c in own})
    return table[[c for own in kinds.values() for c in own]], kinds


# --- models: from rows to as many new ones --------------------------------------------------


def sample_skvae(train, kinds, seed, settings=None):
    """Of the package, with a likelihood for each kind of column."""
    likelihoods = Gaussian(), NegativeBinomial(), Bernoulli(), Categorical()
    parts = [(part, own) for part, own in zip(likelihoods, kinds.values(), strict=True) if len(own)]
    settings = SETTINGS if settings is None else settings
    vae = VAETransformer(likelihood=Columns(parts), random_state=seed, **settings)
    return vae.fit(train).sample(len(train), random_state=seed)


def sample_tvae(train, kinds, seed):
    """Of the ctgan package."""
    from ctgan import TVAE

    model = TVAE(enable_gpu=False)
    model.set_random_state(seed)
    model.fit(train, kinds["yes_no"] + kinds["categories"])
    return repair(model.sample(len(train)), kinds)


def sample_mixture(train, kinds, seed):
    """Of a mixture of normals on one-hot and standardised columns."""
    columns = kinds["numbers"] + kinds["counts"]
    encoder, scaler = OneHotEncoder(sparse_output=False), StandardScaler()
    hot = encoder.fit_transform(train[kinds["yes_no"] + kinds["categories"]])
    numbers = scaler.fit_transform(train[columns])
    scale = StandardScaler().fit(hot)
    Y = np.hstack([numbers, scale.transform(hot)])
    fit, held = train_test_split(Y, test_size=0.2, random_state=seed)

    def make(n):
        return GaussianMixture(n, reg_covar=1e-3, random_state=seed)

    best = max(N_COMPONENTS, key=lambda n: make(n).fit(fit).score(held))
    new = make(best).fit(Y)
    new.random_state = seed
    rows = new.sample(len(train))[0]
    hot = scale.inverse_transform(rows[:, len(columns) :])
    frame = pd.DataFrame(scaler.inverse_transform(rows[:, : len(columns)]), columns=columns)
    # The largest one-hot column of each category is 1.
    sizes = np.cumsum([len(c) for c in encoder.categories_])[:-1]
    names = encoder.feature_names_in_
    for name, values, own in zip(
        names, encoder.categories_, np.split(hot, sizes, axis=1), strict=True
    ):
        frame[name] = values[own.argmax(axis=1)]
    return repair(frame, kinds)


def repair(frame, kinds):
    """Counts that are counts."""
    for column in kinds["counts"]:
        frame[column] = frame[column].round().clip(lower=0).astype(int)
    return frame


MODELS = {
    "real rows": lambda train, kinds, seed: train,
    "skvae": sample_skvae,
    "TVAE": sample_tvae,
    "GaussianMixture": sample_mixture,
}


# --- classifiers ----------------------------------------------------------------------------


def classifiers(kinds, seed):
    """Both, from a table to the target."""
    hot = [c for c in kinds["yes_no"] + kinds["categories"] if c != TARGET]
    encode = make_column_transformer(
        (OneHotEncoder(handle_unknown="ignore"), hot),
        (StandardScaler(), kinds["numbers"] + kinds["counts"]),
    )
    forest = RandomForestClassifier(300, min_samples_leaf=5, random_state=seed, n_jobs=1)
    return {
        "logistic regression": make_pipeline(encode, LogisticRegression(max_iter=1000)),
        "random forest": make_pipeline(encode, forest),
    }


def judge(rows, test, kinds, seed):
    """Area under the curve and accuracy of both on the test rows."""
    y, results = test[TARGET] == "True", {}
    for name, classifier in classifiers(kinds, seed).items():
        classifier.fit(rows, rows[TARGET] == "True")
        chance = classifier.predict_proba(test)[:, 1]
        results[name] = {
            "auc": float(roc_auc_score(y, chance)),
            "accuracy": float(np.mean((chance > 0.5) == y)),
        }
    return results


def race(table, kinds, seed, models, validate):
    """What each model's samples are worth, and its seconds."""

    def split(rows):
        return train_test_split(rows, test_size=0.3, random_state=0, stratify=rows[TARGET])

    train, test = split(table)
    if validate:
        train, test = split(train)
    train, test = train.reset_index(drop=True), test.reset_index(drop=True)
    results = {}
    for name in models:
        start = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                rows = MODELS[name](train, kinds, seed)
            except ImportError as error:
                print(f"{name} is left out: {error}", file=sys.stderr)
                continue
            seconds = time.perf_counter() - start
            results[name] = {"seconds": seconds, **judge(rows, test, kinds, seed)}
    return results


def print_results(report):
    header = ["table", "classifier", *MODELS]
    for measure in ("auc", "accuracy"):
        rows = []
        for table, repeats in report["tables"].items():
            for classifier in ("logistic regression", "random forest"):
                cells = []
                for name in MODELS:
                    own = [r[name][classifier][measure] for r in repeats if name in r]
                    texts = [f"{x:.3f}" for x in (np.mean(own), min(own), max(own))] if own else []
                    cells.append("{} ({}-{})".format(*texts) if own else "")
                rows.append([table, classifier, *cells])
        print(f"\n{measure}\n\n{machine.table(header, rows)}")
    rows = []
    for table, repeats in report["tables"].items():
        seconds = [[r[name]["seconds"] for r in repeats if name in r] for name in MODELS]
        rows.append([table, *(machine.spread(own, 2) if own else "" for own in seconds[1:])])
    print(f"\nseconds\n\n{machine.table(['table', *list(MODELS)[1:]], rows)}")
    print(f"\n{machine.summarise(report['run'])}")


def main():
    default = HERE / "results" / "samples.json"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, help="of torch (default: its own)")
    parser.add_argument("--validate", action="store_true", help="on training rows, keeps no file")
    parser.add_argument("--markdown", action="store_true", help="only print what --json has")
    parser.add_argument("--json", type=Path, default=default, help=f"(default: {default.name})")
    args = parser.parse_args()
    if args.markdown:
        print_results(machine.read(args.json))
        return
    if args.threads:
        torch.set_num_threads(args.threads)
    tables = machine.read(args.json).get("tables", {})  # those not asked for stay
    report = {"run": machine.describe(), "tables": {} if args.validate else tables}
    for name in args.tables:
        try:
            table, kinds = load(name)
        except ImportError as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
            continue
        repeats = report["tables"][name] = []
        for seed in range(args.repeats):
            print(f"{name} {seed}", file=sys.stderr)
            repeats.append(race(table, kinds, seed, args.models, args.validate))
            if not args.validate:
                machine.write(args.json, report)
    print_results(report)


if __name__ == "__main__":
    main()

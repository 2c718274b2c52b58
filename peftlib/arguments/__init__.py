"""Command lines of the scripts, which pass plain values to the library. No torch, so that errors show at once."""

from __future__ import annotations

from peftlib.arguments.compare import CompareArguments, parse_compare_arguments
from peftlib.arguments.export import ExportArguments, parse_export_arguments
from peftlib.arguments.hub import HubArguments
from peftlib.arguments.inputs import DataArguments, ModelArguments
from peftlib.arguments.output import OutputArguments
from peftlib.arguments.predict import PredictArguments, parse_predict_arguments
from peftlib.arguments.reproduce import ReproduceArguments, parse_reproduce_arguments
from peftlib.arguments.submit import SubmitArguments, parse_submit_arguments
from peftlib.arguments.sweep import SweepArguments, parse_sweep_arguments
from peftlib.arguments.train import TrainArguments, check_train_arguments, parse_train_arguments, train_parser
from peftlib.arguments.training import TrainingArguments

__all__ = [
    "CompareArguments",
    "DataArguments",
    "ExportArguments",
    "HubArguments",
    "ModelArguments",
    "OutputArguments",
    "PredictArguments",
    "ReproduceArguments",
    "SubmitArguments",
    "SweepArguments",
    "TrainArguments",
    "TrainingArguments",
    "check_train_arguments",
    "parse_compare_arguments",
    "parse_export_arguments",
    "parse_predict_arguments",
    "parse_reproduce_arguments",
    "parse_submit_arguments",
    "parse_sweep_arguments",
    "parse_train_arguments",
    "train_parser",
]

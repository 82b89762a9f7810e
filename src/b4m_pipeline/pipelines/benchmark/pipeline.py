"""Pairs of folders in; table, comparison, pictures and an HTML report out."""

from kedro.pipeline import Node, Pipeline

from b4m_pipeline.pipelines import params
from b4m_pipeline.pipelines.benchmark import nodes


def create_pipeline(**kwargs) -> Pipeline:
    return Pipeline(
        [
            Node(
                nodes.run_benchmark,
                [
                    *params("benchmark", "content", "style", "counterparts", "base_model", "frame", "content_break"),
                    *params("style_break", "make", "ingestion", "captioning", "preservation", "evaluation", "seed"),
                ],
                ["benchmark_results", "benchmark_references"],
                name="run_benchmark",
            ),
            Node(
                nodes.compare_methods,
                ["benchmark_results", "benchmark_references", *params("benchmark", "evaluation", "seed")],
                ["benchmark_table", "benchmark_comparison", "benchmark_validation"],
                name="compare_methods",
            ),
            Node(
                nodes.report_benchmark,
                [
                    *("benchmark_results", "benchmark_references"),
                    *("benchmark_table", "benchmark_comparison", "benchmark_validation", "params:benchmark"),
                ],
                ["benchmark_sheets", "benchmark_scatter", "benchmark_bars", "benchmark_report", "benchmark_summary"],
                name="report_benchmark",
            ),
        ]
    )

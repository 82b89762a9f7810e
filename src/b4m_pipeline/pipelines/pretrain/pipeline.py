"""Corpus in, embedded base model and small CLIP out, and a report on both."""

from kedro.pipeline import Node, Pipeline

from b4m_pipeline.pipelines.pretrain import nodes


def _rendering() -> Node:
    return Node(nodes.render_corpus, "params:pretrain", "drawings", name="render_corpus")


def _report() -> list[Node]:
    models = ["base_folder", "clip_folder"]
    return [
        Node(nodes.judge_parts, ["drawings", *models, "params:pretrain"], "base_parts", name="judge_parts"),
        Node(
            nodes.judge_base,
            ["drawings", "base_folder", "params:pretrain"],
            ["base_prompted", "base_taught", "base_sheet", "base_taught_sheet"],
            name="judge_base",
        ),
        Node(nodes.collect_figures, ["base_parts", "base_prompted", "base_taught"], "base_figures", name="collect_figures"),
    ]


def create_pipeline(**kwargs) -> Pipeline:
    """Train everything, then report."""
    return Pipeline(
        [
            _rendering(),
            Node(nodes.train_tokenizer, ["drawings", "params:pretrain"], "tokenizer_folder", name="train_tokenizer"),
            Node(nodes.train_vae, ["drawings", "params:pretrain"], "vae_folder", name="train_vae"),
            Node(
                nodes.train_base,
                ["drawings", "tokenizer_folder", "vae_folder", "params:pretrain"],
                "base_folder",
                name="train_base",
            ),
            Node(nodes.train_clip, ["drawings", "tokenizer_folder", "params:pretrain"], "clip_folder", name="train_clip"),
            *_report(),
        ]
    )


def create_further_pipeline() -> Pipeline:
    """Train the base that is there further, on the corpus as it is now."""
    render = Node(nodes.render_wider_corpus, "params:pretrain", "wider_drawings", name="render_wider_corpus")
    inputs = ["wider_drawings", "params:pretrain"]
    return Pipeline([render, Node(nodes.train_base_further, inputs, "further_base_folder", name="train_base_further")])


def create_report_pipeline() -> Pipeline:
    """Report on the models that are there."""
    render = Node(nodes.render_known_corpus, "params:pretrain", "drawings", name="render_known_corpus")
    find = Node(nodes.find_base, "params:pretrain", ["base_folder", "clip_folder"], name="find_base")
    return Pipeline([render, find, *_report()])

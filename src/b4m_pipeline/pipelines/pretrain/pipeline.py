"""Corpus in, embedded base model and small CLIP out."""

from kedro.pipeline import Node, Pipeline

from b4m_pipeline.pipelines.pretrain import nodes


def create_pipeline(**kwargs) -> Pipeline:
    return Pipeline(
        [
            Node(nodes.render_corpus, "params:pretrain", "drawings", name="render_corpus"),
            Node(nodes.train_tokenizer, ["drawings", "params:pretrain"], "tokenizer_folder", name="train_tokenizer"),
            Node(nodes.train_vae, ["drawings", "params:pretrain"], "vae_folder", name="train_vae"),
            Node(
                nodes.train_base,
                ["drawings", "tokenizer_folder", "vae_folder", "params:pretrain"],
                "base_folder",
                name="train_base",
            ),
            Node(nodes.train_clip, ["drawings", "tokenizer_folder", "params:pretrain"], "clip_folder", name="train_clip"),
            Node(
                nodes.judge_base,
                ["drawings", "base_folder", "clip_folder", "params:pretrain"],
                ["base_figures", "base_sheet"],
                name="judge_base",
            ),
        ]
    )

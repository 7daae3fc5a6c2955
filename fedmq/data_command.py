"""`fedmq data`: what there is to train on, and how it is dealt to nodes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fedmq import console
from fedmq.console import JsonOption, print_json, print_table, sentences
from fedmq.options import command_environment

data_app = typer.Typer(help="List, fetch and partition data sets.", no_args_is_help=True)

SizeOption = Annotated[int, typer.Option(help="Image height and width in pixels: 28, 64, 128 or 224.")]


@data_app.command("list")
def list_known(*, as_json: JsonOption = False) -> None:
    """List the data sets known by name, and those of FEDMQ_DATA_DIR."""
    from federation.data import list_datasets

    with sentences():
        environment = command_environment()
        known: list[dict[str, Any]] = [
            {
                "name": facts.name,
                "classes": len(facts.class_names),
                "examples": facts.num_examples,
                "sizes": list(facts.sizes),
                "licence": facts.licence,
            }
            for facts in list_datasets()
        ]
        local = sorted(str(path) for path in environment.data_dir.iterdir()) if environment.data_dir else []
    if as_json:
        print_json({"known": known, "data_dir": local})
        return
    rows = [
        (entry["name"], entry["classes"], entry["examples"], ", ".join(str(size) for size in entry["sizes"]), entry["licence"])
        for entry in known
    ]
    print_table("known data sets (`fedmq data fetch NAME`)", ("name", "classes", "examples", "sizes", "licence"), rows)
    if local:
        console.out.print("in FEDMQ_DATA_DIR: " + ", ".join(Path(name).name for name in local), markup=False)
    console.out.print("besides: any .npz with MedMNIST or Keras keys, and any folder of images in class sub-folders", markup=False)


@data_app.command()
def fetch(name: Annotated[str, typer.Argument(help="The data set's name.")], *, size: SizeOption = 28, as_json: JsonOption = False) -> None:
    """Fetch a data set into the cache and say what it holds."""
    from federation.data import load_dataset
    from federation.settings import parse_settings

    with sentences():
        environment = command_environment()
        settings = parse_settings({"data": {"name": name, "size": size}}, source="fetch").data
        dataset = load_dataset(settings, data_dir=environment.data_dir, cache_dir=environment.cache_dir, progress=not as_json)
    facts = {
        "name": dataset.name,
        "class_names": list(dataset.class_names),
        "image_shape": list(dataset.image_shape),
        "train": len(dataset.train),
        "test": len(dataset.test),
        "validation": len(dataset.validation) if dataset.validation else 0,
        "licence": dataset.licence,
    }
    if as_json:
        print_json(facts)
    else:
        print_table(dataset.name, ("fact", "value"), list(facts.items()))


@data_app.command()
def partition(
    name: Annotated[str, typer.Argument(help="Data set name, .npz file or folder of class sub-folders.")],
    *,
    scheme: Annotated[str, typer.Option(help="iid, dirichlet, shards or quantity.")] = "dirichlet",
    nodes: Annotated[int, typer.Option(min=1, help="How many nodes.")] = 3,
    alpha: Annotated[float, typer.Option(help="Dirichlet concentration.")] = 0.5,
    classes_per_node: Annotated[int, typer.Option(min=1, help="shards: classes of one node.")] = 2,
    seed: Annotated[int, typer.Option(min=0, help="The partition's own seed.")] = 42,
    size: SizeOption = 28,
    png: Annotated[Path | None, typer.Option(help="Draw the node x class heatmap and bars into this file.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show which node would hold how much of which class."""
    import numpy as np

    from federation.data import load_dataset
    from federation.partition import hold_out, split
    from federation.settings import parse_settings

    with sentences():
        environment = command_environment()
        values = {"scheme": scheme, "num_nodes": nodes, "alpha": alpha, "classes_per_node": classes_per_node, "seed": seed}
        settings = parse_settings({"data": {"name": name, "size": size}, "partition": values}, source="partition")
        dataset = load_dataset(settings.data, data_dir=environment.data_dir, cache_dir=environment.cache_dir, progress=not as_json)
        parts = split(dataset.train.labels, settings.partition)
    counts = np.array([np.bincount(dataset.train.labels[part], minlength=dataset.num_classes) for part in parts])
    share = settings.partition.validation_share
    held_out = [len(hold_out(dataset.train.labels, part, share, settings.partition.seed)[1]) for part in parts]
    if png is not None:
        from fedmq.figures import draw_partition

        with sentences():
            draw_partition(counts, dataset.class_names, png, title=f"{dataset.name}: {scheme}, {nodes} nodes, seed {seed}")
    if as_json:
        print_json({"class_names": list(dataset.class_names), "counts": counts.tolist(), "validation": held_out})
        return
    rows = [[f"node-{index}", row.sum(), held_out[index], *row] for index, row in enumerate(counts)]
    print_table(f"{dataset.name}: {scheme}", ("node", "examples", "validation", *dataset.class_names), rows)
    if png is not None:
        console.out.print(f"drew {png}", markup=False)

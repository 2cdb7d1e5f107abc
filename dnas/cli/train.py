"""`dnas train`: train one network to the end."""

import argparse

from dnas.cli.parser import (
    add_compile_options,
    add_data_options,
    add_kernels,
    add_threads_and_device,
    add_training_options,
    file_path,
    whole_number,
)

SUMMARY = "train one network to the end"
EXAMPLES = """  dnas train densenet-bc:L=16,k=8 --dataset digits --epochs 10
  dnas train densenet_40_12 --dataset cifar10 --recipe paper
  dnas train densenet_bc_190_40 --dataset cifar10 --recipe paper --gpus 4
  torchrun --nproc-per-node 4 -m dnas train densenet_bc_190_40 --dataset cifar10 --recipe paper
  dnas train densenet121:classes=10 --dataset folder:~/imagenette --batch-size 32"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="network to train: see `dnas cost --help`")
    training = parser.add_argument_group("training")
    add_training_options(training, "fast")
    training.set_defaults(seed=0)
    data = parser.add_argument_group("data")
    data.add_argument(
        "--dataset",
        required=True,
        metavar="NAME",
        help="data set: digits, cifar10, cifar100, svhn, imagenet, folder:PATH, csv:FILE, npz:FILE or hf:FOLDER",
    )
    add_data_options(data)
    execution = parser.add_argument_group("execution")
    add_threads_and_device(execution)
    execution.add_argument(
        "--gpus",
        type=whole_number(1),
        metavar="N",
        help="split every batch across N GPUs of this machine (with --device cpu: across N processes); the result is"
        " the same up to rounding. For several machines, start this command with torchrun (default: 1)",
    )
    add_compile_options(execution)
    add_kernels(execution)
    output = parser.add_argument_group("output")
    output.add_argument(
        "--out", type=file_path, metavar="FOLDER", help="folder of the run (default: a folder in studies/runs/)"
    )


def run(args: argparse.Namespace) -> int:
    from dnas.arch import parse_name
    from dnas.data.catalog import data_info
    from dnas.data.summary import summarize
    from dnas.training.defaults import check_device_here, check_kernels_name
    from dnas.training.recipe import make_recipe

    # Mistakes are reported before torch is imported.
    parse_name(args.name)
    check_device_here(args.device)
    check_kernels_name(args.kernels)
    make_recipe(args.recipe, data_info(args.dataset))
    summarize(
        args.dataset,
        data_root=args.data_root,
        image_size=args.image_size,
        subset=args.subset,
        split_seed=args.split_seed,
        augmentation=args.augment,
    )
    from dnas.api.train_network import TrainConfig, train_network

    config = TrainConfig(
        name=args.name,
        dataset=args.dataset,
        recipe=args.recipe,
        epochs=args.epochs,
        batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        seed=args.seed,
        data_root=args.data_root,
        subset=args.subset,
        split_seed=args.split_seed,
        image_size=args.image_size,
        augment=args.augment,
        threads=args.threads,
        device=args.device,
        processes=args.gpus,
        compile_net=args.compile,
        cuda_graph=args.cuda_graph,
        kernels=args.kernels,
        out=args.out,
    )
    return train_network(config, debug=args.debug)

"""`dnas cost`: parameters, multiply-adds and activation memory of a network."""

import argparse

from dnas.cli.output import print_json
from dnas.cli.parser import add_json, whole_number

SUMMARY = "compute a network's parameters, multiply-adds and activation memory"
EXAMPLES = """  dnas cost densenet_bc_100_12
  dnas cost densenet121 --layers
  dnas cost resnet:L=110,drop=0.5
  dnas cost densenet-bc:L=100,k=12,theta=0.5 --json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "name",
        metavar="NAME",
        help="a preset such as densenet121 or resnet_164, or a network such as densenet-bc:L=100,k=12,theta=0.5; a"
        " plugin's family has names such as vgg:convs=1-2-2 (docs/plugins.md)",
    )
    add("--batch", type=whole_number(1), default=64, metavar="N", help="images per training step (default: 64)")
    output = parser.add_argument_group("output")
    output.add_argument("--layers", action="store_true", help="print one row per layer")
    add_json(output)


def run(args: argparse.Namespace) -> int:
    from dataclasses import asdict

    from dnas.arch import cost, layer_costs, parse_name

    name, batch = str(args.name), int(args.batch)
    spec = parse_name(name)
    total, layers = cost(spec, batch), layer_costs(spec, batch)
    if args.json:
        print_json({"network": name, **asdict(total), "layers": [asdict(layer) for layer in layers]})
        return 0
    from dnas.formatting import count, size

    side, channels = spec.image_size, spec.in_channels
    print(f"{name}   {spec.title}, depth {spec.depth}, {side}×{side}×{channels} images, {spec.classes} classes")
    print(f"params            {total.params:>16,}   {count(total.params)}")
    print(f"macs              {total.macs:>16,}   {count(total.macs)} for one image")
    memory = size(total.activation_bytes)
    print(f"activation bytes  {total.activation_bytes:>16,}   {memory} for a training step of {batch}")
    if args.layers:
        head = f"\n{'layer':28s} {'in':>6s} {'out':>6s} {'pixels':>9s} {'params':>12s}"
        print(f"{head} {'macs':>14s} {'activation bytes':>18s}")
        for layer in layers:
            print(
                f"{layer.name:28s} {layer.in_channels:6d} {layer.out_channels:6d} {f'{layer.size}×{layer.size}':>9s}"
                f" {layer.params:12,d} {layer.macs:14,d} {layer.activation_bytes:18,d}"
            )
    return 0

"""How the small ResNet is trained: a run that stops and goes on, and weights that ACR begins with."""

import json

import pytest
import torch

from miniature.training import resnet
from usam.baselines.acr_networks import Classifier, load_weights
from usam.config_rivals import AcrConfig


def test_training_stops_goes_on_and_acr_reads_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(resnet, "BATCH", 2)
    out = tmp_path / "resnet.safetensors"
    first = resnet.train(0.005, out, 4)
    second = resnet.train(first["minutes"] + 0.005, out, 4)
    assert second["steps"] > first["steps"] >= 1 and second["drawn"] == 8
    assert out.stat().st_size < 2e6
    config = AcrConfig(network="resnet18", width=16, weights=str(out), features=32, painter=(8,), side=96)
    net = Classifier(config, 3).eval()
    load_weights(net.resnet, config)
    known = resnet.Network()
    known.load_state_dict(torch.load(out.with_suffix(".pt"), weights_only=True)["model"])
    torch.testing.assert_close(net.resnet.conv1.weight, known.resnet.conv1.weight, atol=1e-3, rtol=1e-3)
    picture = torch.rand(1, 3, 96, 96)
    cams, _, _ = net(2 * picture - 1)  # the same normalisation, and the same network but for its last layer
    known.resnet.fc = torch.nn.Identity()
    with torch.no_grad():
        expected = known.eval()(picture)
        seen = (picture - net.mean) / net.std
        for part in ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"):
            seen = getattr(net.resnet, part)(seen)
    torch.testing.assert_close(seen.mean((2, 3)), expected, atol=0.02, rtol=0.02)
    assert cams.shape == (1, 3, 12, 12)
    monkeypatch.setattr(
        "sys.argv", ["resnet", "--minutes", "0", "--out", str(out), "--per-class", "1", "--threads", "1"]
    )
    threads = torch.get_num_threads()
    resnet.main()
    torch.set_num_threads(threads)
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(found) == {"studio", "web"} and all(0 <= value <= 1 for value in found.values())


def test_a_perfect_network_is_right(tmp_path, monkeypatch):
    """The measure, with a network that reads the class off a picture of one grey level."""
    levels = torch.arange(20) * 10
    monkeypatch.setattr(resnet, "held_out", lambda *_: (levels.view(-1, 1, 1, 1).expand(-1, 3, 4, 4), torch.arange(20)))
    monkeypatch.setattr(resnet, "load_file", lambda _: {})

    class Reader(torch.nn.Module):
        resnet = torch.nn.Identity()

        def forward(self, pictures):
            numbers = (pictures.mean((1, 2, 3)) * 25.5).round().long()
            wanted = torch.tensor([resnet.DRAWINGS.index(name) for name in resnet.VOC])[numbers]
            return torch.nn.functional.one_hot(wanted, len(resnet.DRAWINGS)).float()

    monkeypatch.setattr(resnet, "Network", Reader)
    assert resnet.accuracy(tmp_path / "none", 1) == {"studio": pytest.approx(1), "web": pytest.approx(1)}

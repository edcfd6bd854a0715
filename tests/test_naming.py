"""Names of clusters: by the truth (oracle), and by the labels of training images (deployable)."""

from itertools import permutations

import numpy as np

from usam.baselines import naming


def test_overlaps_by_hand():
    clusters = np.array([[0, 0, 1], [2, 1, 1]])
    truth = np.array([[0, 1, 1], [255, 2, 1]], np.uint8)
    assert naming.overlaps(clusters, truth, 3, 2).tolist() == [[1, 1, 0], [0, 2, 1], [0, 0, 0]]


def test_iou_and_count_can_disagree():
    pixels = np.array([[100, 50], [40, 0]])  # count: 100 > 50 + 40; IoU: 100/190 < 50/150 + 40/140
    assert naming.by_count(pixels).tolist() == [0, 1]
    assert naming.by_iou(pixels).tolist() == [1, 0]


def test_no_order_of_names_has_more_right_pixels():
    pixels = np.random.default_rng(0).integers(0, 100, (4, 4))
    best = max(sum(pixels[k, name] for k, name in enumerate(order)) for order in permutations(range(4)))
    names = naming.by_count(pixels)
    assert sorted(names) == [0, 1, 2, 3] and pixels[range(4), names].sum() == best


def test_more_clusters_than_names_take_the_most_frequent_one():
    pixels = np.array([[5, 1, 0], [0, 4, 1], [0, 6, 7], [0, 0, 9]])
    assert naming.by_iou(pixels).tolist() == [0, 1, 2, 2]


def test_names_by_image_labels_by_hand():
    patches = np.array([[8, 2], [1, 9], [50, 50]])
    attended = np.array([0.9, 0.8, 0.1])  # nobody looks at the last one
    assert naming.by_image_labels(patches, attended, one_each=True).tolist() == [1, 2, 0]
    assert naming.by_image_labels(patches, attended, one_each=False).tolist() == [1, 2, 0]


def test_a_frequent_class_does_not_take_all_clusters():
    patches = np.array([[60, 40], [90, 10]])  # class 1 has 75% of all patches: 40% of class 2 is much
    assert naming.by_image_labels(patches, np.ones(2), one_each=False).tolist() == [2, 1]


def test_two_clusters_of_one_class_share_it_only_if_they_may():
    patches = np.array([[10, 0], [9, 1]])
    assert naming.by_image_labels(patches, np.ones(2), one_each=True).tolist() == [1, 2]
    assert naming.by_image_labels(patches * [[1, 1], [1, 0]], np.ones(2), one_each=False).tolist() == [1, 1]


def test_an_empty_cluster_is_background():
    names = naming.by_image_labels(np.array([[0, 0], [3, 1]]), np.ones(2), one_each=True)
    assert names[0] == 0 and names[1] > 0

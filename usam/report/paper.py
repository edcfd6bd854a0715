"""The numbers that the paper reports (section 4), in percent, and where they contradict each other.

A row is (method, training images, mIoU, mAP50), with None where the paper gives no number.
"""

TABLE_1 = (  # PASCAL VOC 2012 val
    ("Leopart", "synthetic", 7.21, None),
    ("TransFGU", "synthetic", 2.05, None),
    ("ACR", "synthetic", 3.49, None),
    ("U-SAM", "synthetic", 25.16, 49.06),
    ("Leopart", "web", 6.79, None),
    ("TransFGU", "web", 2.45, None),
    ("ACR", "web", 13.42, None),
    ("U-SAM", "web", 22.42, 45.59),
)

TABLE_2 = (  # MSCOCO-80 val
    ("Leopart", "synthetic", 3.84, None),
    ("TransFGU", "synthetic", 0.95, None),
    ("ACR", "synthetic", 0.61, None),
    ("U-SAM", "synthetic", 8.60, 30.90),
    ("Leopart", "web", 3.81, None),
    ("TransFGU", "web", 1.02, None),
    ("ACR", "web", 2.10, None),
    ("U-SAM", "web", 9.01, 31.80),
)

# Table 3 repeats the rows of U-SAM
TABLE_3_VOC = (("SAM+CLIP", "none", 19.17, 42.45), *(row for row in TABLE_1 if row[0] == "U-SAM"))
TABLE_3_COCO = (("SAM+CLIP", "none", 7.91, 29.93), *(row for row in TABLE_2 if row[0] == "U-SAM"))

# "MIL + Distillation" is U-SAM; on COCO its rows differ from Tables 2 and 3, see CONTRADICTIONS
TABLE_4_VOC = (
    ("MIL only", "synthetic", 22.42, 42.47),
    ("U-SAM", "synthetic", 25.16, 49.06),
    ("MIL only", "web", 17.42, 39.86),
    ("U-SAM", "web", 22.42, 45.59),
)
TABLE_4_COCO = (
    ("MIL only", "synthetic", 8.01, 30.89),
    ("U-SAM", "synthetic", 8.60, 30.97),
    ("MIL only", "web", 8.57, 27.57),
    ("U-SAM", "web", 9.01, 31.81),
)

GRANULARITY_MAP50 = 61.54  # five superclasses on PASCAL VOC, synthetic images (section 4, "Changed Granularity")

# What the text prints of Tables 1 and 2, U-SAM minus another method, mIoU: data set, U-SAM's training images, the other
# method and its training images, the difference, and where it stands. (TransFGU with web images on COCO has +7.99, too,
# but the introduction's +7.99 is about weakly supervised methods.)
HEADLINES = (
    ("voc", "synthetic", "Leopart", "synthetic", 17.95, "Abstract, Introduction, Discussion"),
    ("coco", "web", "Leopart", "web", 5.20, "Abstract, Introduction"),
    ("voc", "synthetic", "ACR", "synthetic", 21.67, "Introduction"),
    ("coco", "synthetic", "ACR", "synthetic", 7.99, "Introduction"),
    ("coco", "web", "Leopart", "synthetic", 5.17, "Discussion"),
)

CONTRADICTIONS = (
    "U-SAM with synthetic images on COCO has 30.90 mAP50 in Tables 2 and 3, and 30.97 in Table 4.",
    "U-SAM with web images on COCO has 31.80 mAP50 in Tables 2 and 3, and 31.81 in Table 4.",
    "Table 4, VOC, synthetic: from 22.42 to 25.16 mIoU is +2.74, printed as +2.53; from 42.47 to 49.06 mAP50 is +6.59, "
    "printed as +6.56. The other six differences of Table 4 are right.",
    "Table 4, VOC: 22.42 mIoU stands for two different runs, MIL only with synthetic images and U-SAM with web images.",
    "Table 4 calls its second score mAP; its rows of U-SAM on VOC repeat the mAP50 of Table 1.",
    "The ablation study gives web images on VOC gains of +5% mIoU and +6.59% mAP50. Table 4 has +5.00 and +5.73 for "
    "web images; +6.59 is the difference of the mAP50 of synthetic images.",
    'The ablation study calls the improvement "pronounced in the case of MSCOCO-80". In Table 4, mIoU gains +0.59 '
    "(synthetic) and +0.44 (web) on COCO, but +2.74 and +5.00 on VOC; mAP50 gains +0.08 and +4.24 on COCO, but +6.59 "
    "and +5.73 on VOC.",
    "The discussion gives +5.17% mIoU over Leopart on COCO: 9.01 - 3.84, U-SAM with web images against Leopart with "
    "synthetic images. With the same images it is +5.20 (web: 9.01 - 3.81; abstract and Table 2) or +4.76 (synthetic: "
    "8.60 - 3.84; Table 2).",
    "The abstract compares with different training images on the two data sets: +17.95 on VOC is with synthetic images "
    "(25.16 - 7.21; Table 1 has +9.00 with web images, 22.42 - 13.42), +5.20 on COCO with web images (9.01 - 3.81).",
)

"""The numbers that the paper reports, in percent, and nothing else.

Rows: (method, training images, mIoU, mAP50); None where the paper gives no number.
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

# "MIL + Distillation" is U-SAM; its rows differ from Tables 1 to 3 in places, see CONTRADICTIONS
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

GRANULARITY_MAP50 = 61.54  # five superclasses on PASCAL VOC, synthetic images

CONTRADICTIONS = (
    "Table 2 and Table 3 give 30.90 mAP50 for U-SAM (synthetic) on COCO, Table 4 gives 30.97.",
    "Table 2 and Table 3 give 31.80 mAP50 for U-SAM (web) on COCO, Table 4 gives 31.81.",
    "Table 4, VOC, synthetic: 22.42 to 25.16 mIoU is +2.74, printed as +2.53; 42.47 to 49.06 mAP50 is +6.59, "
    "printed as +6.56.",
    "The ablation text gives +5% mIoU and +6.59% mAP50 to web images; Table 4 has +6.59 in the synthetic rows.",
    "The discussion says +5.17% mIoU over Leopart on COCO, the abstract and Table 2 say +5.20%.",
)

"""The well-known scene data sets, as their publishers describe them."""

from __future__ import annotations

from scenedistill.data.known.dataset_info import DatasetInfo, Source


def _each(count: int, names: str) -> dict[str, int]:
    return dict.fromkeys(names.split(), count)


def _counted(table: str) -> dict[str, int]:
    words = table.split()
    return {name: int(count) for name, count in zip(words[::2], words[1::2], strict=True)}


_HUB = "https://hf.co/datasets/torchgeo"  # torchgeo's unmodified copies, each pinned to a commit

ENTRIES = (
    DatasetInfo(
        key="aid",
        name="AID",
        counts=_counted(
            "Airport 360 BareLand 310 BaseballField 220 Beach 400 Bridge 360 Center 260 Church 240 Commercial 350 "
            "DenseResidential 410 Desert 300 Farmland 370 Forest 250 Industrial 390 Meadow 280 MediumResidential 290 "
            "Mountain 340 Park 350 Parking 390 Playground 370 Pond 420 Port 380 RailwayStation 260 Resort 290 "
            "River 410 School 300 SparseResidential 300 Square 330 Stadium 290 StorageTanks 360 Viaduct 420"
        ),
        pixels=600,
        resolution="0.5 to 8",
        licence="academic use; redistribution unstated",
        train_ratios=(0.2, 0.5),
        reference="Xia et al., AID: A Benchmark Data Set for Performance Evaluation of Aerial Scene Classification, "
        "IEEE TGRS 2017",
        doi="10.1109/TGRS.2017.2685945",
        home="https://captain-whu.github.io/AID/",
        other_names=("Aerial Image Dataset",),
    ),
    DatasetInfo(
        key="resisc45",
        name="NWPU-RESISC45",
        counts=_each(
            700,
            "airplane airport baseball_diamond basketball_court beach bridge chaparral church circular_farmland cloud "
            "commercial_area dense_residential desert forest freeway golf_course ground_track_field harbor "
            "industrial_area intersection island lake meadow medium_residential mobile_home_park mountain overpass "
            "palace parking_lot railway railway_station rectangular_farmland river roundabout runway sea_ice ship "
            "snowberg sparse_residential stadium storage_tank tennis_court terrace thermal_power_station wetland",
        ),
        pixels=256,
        resolution="0.2 to 30",
        licence="unstated in the paper; torchgeo's copy is marked CC BY-NC 4.0",
        train_ratios=(0.1, 0.2),
        reference="Cheng et al., Remote Sensing Image Scene Classification: Benchmark and State of the Art, "
        "Proceedings of the IEEE 2017",
        doi="10.1109/JPROC.2017.2675998",
        home="https://gcheng-nwpu.github.io/#Datasets",
        sources=(
            Source(
                f"{_HUB}/resisc45/resolve/a826b44d938a883185f11ebe3d512d38b464312f/NWPU-RESISC45.zip",
                folder="NWPU-RESISC45",
                md5="75206b2e16446591afa88e2628744886",
                sha256="beeecd0b63656290ae6d65cf7763185b0c1c4c54a753ef8088d6fba3faaf1f53",
            ),
        ),
        other_names=("nwpu", "nwpu45", "resisc"),
    ),
    DatasetInfo(
        key="ucmerced",
        name="UC Merced",
        counts=_each(
            100,
            "agricultural airplane baseballdiamond beach buildings chaparral denseresidential forest freeway "
            "golfcourse harbor intersection mediumresidential mobilehomepark overpass parkinglot river runway "
            "sparseresidential storagetanks tenniscourt",
        ),
        pixels=256,
        resolution="0.3",
        licence="public-domain imagery of the USGS, as stated by the authors",
        train_ratios=(0.5, 0.8),
        reference="Yang and Newsam, Bag-of-Visual-Words and Spatial Extensions for Land-Use Classification, "
        "ACM SIGSPATIAL GIS 2010",
        doi="10.1145/1869790.1869829",
        home="http://weegee.vision.ucmerced.edu/datasets/landuse.html",
        sources=(
            Source(
                f"{_HUB}/ucmerced/resolve/7c5ef3454d9b1cccfa7ccde0c01fc8f00a45909a/UCMerced_LandUse.zip",
                folder="UCMerced_LandUse/Images",
                md5="5b7ec56793786b6dc8a908e8854ac0e4",
                sha256="06c539ef28703a58fb07bd2837991ac7c48b813b00bb12ac197efd813a18daeb",
            ),
        ),
        other_names=("ucm", "UC Merced Land Use", "UCMerced_LandUse"),
    ),
    DatasetInfo(
        key="rsscn7",
        name="RSSCN7",
        counts=_each(400, "aGrass bField cIndustry dRiverLake eForest fResident gParking"),
        pixels=400,
        resolution="",
        licence="research and academic use",
        train_ratios=(0.2, 0.5),
        reference="Zou et al., Deep Learning Based Feature Selection for Remote Sensing Scene Classification, "
        "IEEE GRSL 2015",
        doi="10.1109/LGRS.2015.2475299",
        home="https://github.com/palewithout/RSSCN7",
        class_aliases={
            "Grass": "aGrass",
            "Field": "bField",
            "Industry": "cIndustry",
            "RiverLake": "dRiverLake",
            "River or Lake": "dRiverLake",
            "Forest": "eForest",
            "Resident": "fResident",
            "Parking": "gParking",
        },
    ),
    DatasetInfo(
        key="eurosat",
        name="EuroSAT",
        counts=_counted(
            "AnnualCrop 3000 Forest 3000 HerbaceousVegetation 3000 Highway 2500 Industrial 2500 Pasture 2000 "
            "PermanentCrop 2500 Residential 3000 River 2500 SeaLake 3000"
        ),
        pixels=64,
        resolution="10",
        licence="MIT; Sentinel data under the Copernicus terms",
        train_ratios=(0.8,),
        reference="Helber et al., EuroSAT: A Novel Dataset and Deep Learning Benchmark for Land Use and Land Cover "
        "Classification, IEEE JSTARS 2019",
        doi="10.1109/JSTARS.2019.2918242",
        home="https://github.com/phelber/EuroSAT",
        sources=(
            Source(
                "https://zenodo.org/records/7711810/files/EuroSAT_RGB.zip",
                folder="EuroSAT_RGB",
                md5="f46e308c4d50d4bf32fedad2d3d62f3b",
                sha256="b4f5b234ecb7d7ff9c6cddb046543b4717c53fd6e9815be6c0e80cc614f51b90",
            ),
            Source(
                "https://huggingface.co/datasets/torchgeo/eurosat/resolve/"
                "c877bcd43f099cd0196738f714544e355477f3fd/EuroSAT.zip",
                folder="2750",
                md5="c8fa014336c82ac7804f0398fcb19387",
            ),
        ),
        other_names=("EuroSAT RGB",),
    ),
    DatasetInfo(
        key="whu-rs19",
        name="WHU-RS19",
        counts=_counted(
            "Airport 55 Beach 50 Bridge 52 Commercial 56 Desert 50 Farmland 50 footballField 50 Forest 53 "
            "Industrial 53 Meadow 61 Mountain 50 Park 50 Parking 50 Pond 54 Port 53 railwayStation 50 Residential 54 "
            "River 56 Viaduct 58"
        ),
        pixels=600,
        resolution="up to 0.5",
        licence="unstated",
        train_ratios=(0.4, 0.6),
        reference="Dai and Yang, Satellite Image Classification via Two-Layer Sparse Coding With Biased Image "
        "Representation, IEEE GRSL 2011",
        doi="10.1109/LGRS.2010.2055033",
        home="https://captain-whu.github.io/BED4RS/",
        other_names=("WHU19", "RS19"),
    ),
    DatasetInfo(
        key="siri-whu",
        name="SIRI-WHU",
        counts=_each(
            200, "agriculture commercial harbor idle_land industrial meadow overpass park pond residential river water"
        ),
        pixels=200,
        resolution="2",
        licence="CC BY-NC-ND",
        train_ratios=(0.5, 0.8),
        reference="Zhao et al., Dirichlet-Derived Multiple Topic Scene Classification Model for High Spatial "
        "Resolution Remote Sensing Imagery, IEEE TGRS 2016",
        doi="10.1109/TGRS.2015.2496185",
        home="http://www.lmars.whu.edu.cn/prof_web/zhongyanfei/e-code.html",
    ),
    DatasetInfo(
        key="patternnet",
        name="PatternNet",
        counts=_each(
            800,
            "airplane baseball_field basketball_court beach bridge cemetery chaparral christmas_tree_farm closed_road "
            "coastal_mansion crosswalk dense_residential ferry_terminal football_field forest freeway golf_course "
            "harbor intersection mobile_home_park nursing_home oil_gas_field oil_well overpass parking_lot "
            "parking_space railway river runway runway_marking shipping_yard solar_panel sparse_residential "
            "storage_tank swimming_pool tennis_court transformer_station wastewater_treatment_plant",
        ),
        pixels=256,
        resolution="0.06 to 4.7",
        licence="research use; torchgeo's copy is marked CC BY 4.0",
        train_ratios=(),
        reference="Zhou et al., PatternNet: A Benchmark Dataset for Performance Evaluation of Remote Sensing Image "
        "Retrieval, ISPRS Journal 2018",
        doi="10.1016/j.isprsjprs.2018.01.004",
        home="https://sites.google.com/view/zhouwx/dataset",
        sources=(
            Source(
                f"{_HUB}/PatternNet/resolve/2dbd901b00e301967a5c5146b25454f5d3455ad0/PatternNet.zip",
                folder="PatternNet/images",
                sha256="456dd031950b0429518b8ec7d30a5c4b3f6456261ee1dd573a3eee43efb29958",
            ),
        ),
    ),
    DatasetInfo(
        key="optimal-31",
        name="OPTIMAL-31",
        counts=_each(
            60,
            "airplane airport baseball_diamond basketball_court beach bridge chaparral church circular_farmland "
            "commercial_area dense_residential desert forest freeway golf_course ground_track_field harbor "
            "industrial_area intersection island lake meadow medium_residential mobile_home_park mountain overpass "
            "parking_lot railway rectangular_farmland roundabout runway",
        ),
        pixels=256,
        resolution="",
        licence="unstated",
        train_ratios=(0.8,),
        reference="Wang et al., Scene Classification With Recurrent Attention of VHR Remote Sensing Images, "
        "IEEE TGRS 2019",
        doi="10.1109/TGRS.2018.2864987",
        home="https://huggingface.co/datasets/jonathan-roberts1/Optimal-31",
    ),
    DatasetInfo(
        key="rsi-cb256",
        name="RSI-CB256",
        counts=_counted(
            "airplane 351 airport_runway 678 artificial_grassland 283 avenue 544 bare_land 864 bridge 469 "
            "city_building 1014 coastline 459 container 660 crossroads 553 dam 324 desert 1092 dry_farm 1309 "
            "forest 1082 green_farmland 644 highway 223 hirst 628 lakeshore 438 mangrove 1049 marina 366 "
            "mountain 812 parkinglot 467 pipeline 198 residents 810 river 539 river_protection_forest 524 "
            "sandbeach 536 sapling 879 sea 1028 "
            "shrubwood 1331 snow_mountain 1153 sparse_forest 1110 storage_room 1307 stream 688 town 335"
        ),
        pixels=256,
        resolution="0.3 to 3",
        licence="academic use",
        train_ratios=(),
        reference="Li et al., RSI-CB: A Large-Scale Remote Sensing Image Classification Benchmark Using Crowdsourced "
        "Data, Sensors 2020",
        doi="10.3390/s20061594",
        home="https://github.com/lehaifeng/RSI-CB",
    ),
)

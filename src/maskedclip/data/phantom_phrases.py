"""The words of a phantom's report: every phrase is filed under the finding and the severity that it claims.

Spelling and keywords follow the diagnostic texts of real fundus photographs, written out or terse.
"""

FEW = ("a few", "scattered", "occasional", "a small number of", "isolated", "mild")
SEVERAL = ("several", "multiple", "a moderate number of", "moderate", "quite a few")
MANY = ("numerous", "extensive", "widespread", "a large number of", "many", "severe")
QUANTITY = {1: FEW, 2: SEVERAL, 3: MANY}

# Countable findings: plural nouns that follow a quantity.
NOUNS: dict[str, tuple[str, ...]] = {
    "microaneurysm": ("microaneurysms", "retinal microaneurysms", "red dot microaneurysms"),
    "haemorrhage": ("haemorrhages", "retinal haemorrhages", "dot and blot haemorrhages", "intraretinal haemorrhages"),
    "hard_exudate": ("hard exudates", "yellow hard exudates", "hard exudates with sharp margins"),
    "cotton_wool_spot": ("cotton-wool spots", "cotton wool spots", "fluffy white cotton-wool spots"),
    "drusen": ("drusen", "macular drusen", "drusen at the posterior pole", "yellow-white drusen"),
    "laser_scar": ("laser scars", "laser spots", "laser photocoagulation scars", "peripheral laser scars"),
}

# Findings that are not counted: whole phrases by severity.  {ratio} is the cup-to-disc ratio as drawn.
STATES: dict[str, dict[int, tuple[str, ...]]] = {
    "wide_cup": {
        1: (
            "slightly enlarged optic cup",
            "mildly increased cup-to-disc ratio of about {ratio}",
            "borderline cupping of the optic disc",
            "cup-to-disc ratio about {ratio}, slightly large",
        ),
        2: (
            "enlarged optic cup with a thinned rim",
            "increased cup-to-disc ratio of about {ratio}",
            "moderate cupping of the optic disc",
            "large cup, cup-to-disc ratio {ratio}",
        ),
        3: (
            "very large optic cup with hardly any rim",
            "markedly increased cup-to-disc ratio of about {ratio}",
            "advanced cupping of the optic disc",
            "severe cupping, cup-to-disc ratio {ratio}",
        ),
    },
    "media_opacity": {
        1: ("mild media haze", "slightly hazy media", "mild lens opacity", "slightly blurred view of the fundus"),
        2: ("hazy media", "moderate lens opacity", "cloudy media with blurred details", "moderate media opacity"),
        3: (
            "dense media opacity",
            "severe lens opacity, fundus details barely visible",
            "very cloudy media, vessels hardly seen",
            "severe media haze that hides the fundus",
        ),
    },
    "myopic_crescent": {
        1: (
            "small temporal myopic crescent",
            "narrow crescent beside the disc",
            "mild peripapillary crescent",
            "thin myopic crescent at the temporal disc margin",
        ),
        2: (
            "broad temporal myopic crescent",
            "myopic crescent with a tessellated fundus",
            "moderate peripapillary atrophy",
            "wide crescent at the temporal disc margin",
        ),
        3: (
            "extensive peripapillary atrophy with patches of chorioretinal atrophy",
            "very large myopic crescent around the disc",
            "severe peripapillary atrophy",
            "tessellated fundus with a large myopic crescent and patchy atrophy",
        ),
    },
}

# What a report says is absent; the noun follows "no".
ABSENT: dict[str, tuple[str, ...]] = {
    "microaneurysm": ("microaneurysms", "retinal microaneurysms"),
    "haemorrhage": ("haemorrhages", "retinal haemorrhages"),
    "hard_exudate": ("hard exudates", "hard exudate"),
    "cotton_wool_spot": ("cotton-wool spots", "cotton wool spots"),
    "drusen": ("drusen", "macular drusen"),
    "wide_cup": ("enlargement of the optic cup", "pathological cupping"),
    "media_opacity": ("media opacity", "haze of the media"),
    "myopic_crescent": ("myopic crescent", "peripapillary atrophy"),
    "laser_scar": ("laser scars", "laser spots"),
}

# Diseases by grade or severity; the first of each is the keyword that terse texts prefer.
DISEASE: dict[str, dict[int, tuple[str, ...]]] = {
    "diabetic_retinopathy": {
        1: (
            "mild nonproliferative retinopathy",
            "mild non-proliferative diabetic retinopathy",
            "early diabetic retinopathy",
            "minimal background diabetic retinopathy",
        ),
        2: (
            "moderate non proliferative retinopathy",
            "moderate non-proliferative diabetic retinopathy",
            "moderate diabetic retinopathy",
            "background diabetic retinopathy of moderate degree",
        ),
        3: (
            "severe nonproliferative retinopathy",
            "severe non-proliferative diabetic retinopathy",
            "advanced non-proliferative diabetic retinopathy",
            "severe background diabetic retinopathy",
        ),
        4: (
            "proliferative diabetic retinopathy",
            "diabetic retinopathy, proliferative stage",
            "severe proliferative diabetic retinopathy",
            "proliferative retinopathy of diabetes",
        ),
    },
    "glaucoma": {
        1: ("suspected glaucoma", "early glaucoma", "mild glaucoma", "suspicion of glaucoma"),
        2: ("glaucoma", "moderate glaucoma", "glaucomatous optic neuropathy", "established glaucoma"),
        3: ("glaucoma", "advanced glaucoma", "severe glaucoma", "end-stage glaucoma"),
    },
    "cataract": {
        1: ("mild cataract", "early cataract", "incipient cataract", "slight cataract"),
        2: ("cataract", "moderate cataract", "cataract with a blurred fundus view", "cataract of moderate density"),
        3: ("cataract", "dense cataract", "severe cataract", "advanced cataract"),
    },
    "amd": {
        1: (
            "early age-related macular degeneration",
            "mild age-related macular degeneration",
            "early dry age-related macular degeneration",
            "beginning age-related macular degeneration",
        ),
        2: (
            "dry age-related macular degeneration",
            "intermediate age-related macular degeneration",
            "moderate age-related macular degeneration",
            "moderate dry age-related macular degeneration",
        ),
        3: (
            "dry age-related macular degeneration",
            "advanced dry age-related macular degeneration",
            "severe dry age-related macular degeneration",
            "late dry age-related macular degeneration",
        ),
    },
    "pathological_myopia": {
        1: ("mild pathological myopia", "early pathological myopia", "myopic fundus", "mild myopic retinopathy"),
        2: ("pathological myopia", "high myopia", "myopic retinopathy", "moderate pathological myopia"),
        3: (
            "pathological myopia",
            "severe pathological myopia",
            "high myopia with degeneration",
            "degenerative myopia",
        ),
    },
}
WET_AMD = (
    "wet age-related macular degeneration",
    "neovascular age-related macular degeneration",
    "exudative age-related macular degeneration",
    "wet age-related macular degeneration with bleeding",
)

# What is said of healthy parts, with the findings and diseases that must be absent for it to be true.
_BLOOD_AND_LIPID = ("microaneurysm", "haemorrhage", "hard_exudate")
HEALTHY: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("the optic disc is unremarkable", ("wide_cup", "myopic_crescent")),
    ("normal optic disc with a cup-to-disc ratio of {ratio}", ("wide_cup", "myopic_crescent")),
    ("disc margins are sharp", ("myopic_crescent", "media_opacity")),
    ("the macula is unremarkable", (*_BLOOD_AND_LIPID, "drusen", "media_opacity")),
    ("normal macula", (*_BLOOD_AND_LIPID, "drusen")),
    ("the retinal vessels are of normal calibre", ("diabetic_retinopathy", "haemorrhage")),
    ("vessels unremarkable", ("diabetic_retinopathy", "haemorrhage")),
    ("clear media", ("media_opacity",)),
    ("the retinal periphery is unremarkable", (*_BLOOD_AND_LIPID, "cotton_wool_spot", "laser_scar")),
)
NORMAL = (
    "normal fundus",
    "fundus within normal limits",
    "no abnormality detected",
    "healthy fundus",
    "unremarkable fundus",
    "no pathological findings",
)

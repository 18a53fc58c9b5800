"""Names and descriptions of what a fundus photograph shows most often: words for `prompts`, no logic.

Written for this project from general ophthalmic knowledge, in the words that fundus reports use.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What stands for one label.

    names: go into every template.  descriptions: sentences on their own.  aliases: other ways to name the label, which
    the model is not shown.
    """

    names: tuple[str, ...]
    descriptions: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()


FINDINGS = (
    Entry(
        names=(),
        descriptions=(
            "normal fundus",
            "normal retina",
            "healthy fundus",
            "no abnormality",
            "no abnormality detected",
            "unremarkable fundus",
            "no retinopathy",
            "fundus photograph of a healthy eye",
            "normal optic disc, macula and vessels",
            "clear media, healthy disc and macula, no lesions",
        ),
        aliases=("normal", "normal fundus", "normal retina", "healthy", "healthy fundus", "no finding", "no findings"),
    ),
    Entry(
        names=("diabetic retinopathy",),
        descriptions=(
            "mild non proliferative retinopathy",
            "moderate non proliferative retinopathy",
            "severe non proliferative retinopathy",
            "non proliferative diabetic retinopathy",
            "proliferative diabetic retinopathy",
            "microaneurysms and haemorrhages",
            "microaneurysms, retinal hemorrhages and hard exudates",
            "scattered dot and blot haemorrhages with hard exudates and cotton wool spots",
        ),
        aliases=("dr", "retinopathy", "diabetic retinopathy (dr)"),
    ),
    Entry(
        names=("glaucoma", "glaucomatous optic neuropathy"),
        descriptions=(
            "suspected glaucoma",
            "large cup to disc ratio",
            "enlarged optic cup",
            "increased cup-to-disc ratio with thinning of the neuroretinal rim",
            "cupping of the optic disc",
        ),
    ),
    Entry(
        names=("cataract", "refractive media opacity", "lens opacity"),
        descriptions=(
            "hazy media",
            "media opacity, the fundus is blurred",
            "hazy view of the fundus due to lens opacity",
            "cloudy, reddish view with vessels barely visible",
        ),
        aliases=("media opacity", "media haze"),
    ),
    Entry(
        names=("age-related macular degeneration", "macular degeneration"),
        descriptions=(
            "dry age-related macular degeneration",
            "wet age-related macular degeneration",
            "drusen and pigment changes in the macula",
            "many drusen in the macula",
            "geographic atrophy of the macula",
            "choroidal neovascularisation with subretinal fluid or blood",
        ),
        aliases=("amd", "armd", "age related macular degeneration"),
    ),
    Entry(
        names=("hypertensive retinopathy",),
        descriptions=(
            "arteriolar narrowing and arteriovenous nicking",
            "narrowed arteries, arteriovenous crossing changes",
            "attenuated arterioles with flame-shaped haemorrhages and cotton wool spots",
            "copper wiring of the arterioles",
        ),
        aliases=("hypertension", "hr"),
    ),
    Entry(
        names=("pathological myopia", "high myopia", "myopic retinopathy"),
        descriptions=(
            "myopic crescent",
            "tessellated fundus with peripapillary atrophy",
            "tilted disc with a temporal crescent",
            "large peripapillary atrophy, choroidal vessels are visible",
            "chorioretinal atrophy in a myopic eye",
        ),
        aliases=("myopia", "degenerative myopia", "pm"),
    ),
    Entry(
        names=("epiretinal membrane", "macular epiretinal membrane", "macular pucker"),
        descriptions=(
            "glistening membrane on the macula with retinal folds",
            "wrinkling of the macular surface, cellophane reflex",
            "distorted vessels around the macula",
        ),
        aliases=("erm",),
    ),
    Entry(
        names=("drusen", "macular drusen"),
        descriptions=(
            "small yellow deposits in the macula",
            "scattered drusen at the posterior pole",
            "soft drusen",
            "hard drusen",
        ),
    ),
    Entry(
        names=("retinal haemorrhage", "retinal hemorrhage", "haemorrhages", "hemorrhages"),
        descriptions=("dot and blot haemorrhages", "flame-shaped hemorrhage", "scattered intraretinal haemorrhages"),
        aliases=("haemorrhage", "hemorrhage", "bleeding"),
    ),
    Entry(
        names=("hard exudates", "hard exudate"),
        descriptions=("yellow lipid exudates", "bright exudates near the macula", "circinate hard exudates"),
        aliases=("exudate", "exudates"),
    ),
    Entry(
        names=("cotton wool spots", "cotton-wool spots", "soft exudates"),
        descriptions=("fluffy white patches in the retina", "white spots with blurred margins"),
        aliases=("cotton wool spot", "soft exudate", "cws"),
    ),
    Entry(
        names=("microaneurysms", "microaneurysm"),
        descriptions=("small red dots", "a few microaneurysms at the posterior pole"),
    ),
    Entry(
        names=("laser scars", "laser spots", "laser spot", "post laser photocoagulation"),
        descriptions=("panretinal photocoagulation scars", "regular pattern of round, pigmented laser burns"),
        aliases=("laser scar", "laser"),
    ),
    Entry(
        names=("retinal vein occlusion",),
        descriptions=(
            "branch retinal vein occlusion",
            "central retinal vein occlusion",
            "flame-shaped haemorrhages in one sector",
            "dilated, tortuous veins with many haemorrhages",
        ),
        aliases=("rvo", "vein occlusion"),
    ),
    Entry(
        names=("macular edema", "macular oedema", "diabetic macular edema"),
        descriptions=("thickened macula with a ring of hard exudates",),
        aliases=("dme", "edema", "oedema", "diabetic macular oedema"),
    ),
    Entry(
        names=("retinal detachment",),
        descriptions=("elevated, grey, folded retina", "rhegmatogenous retinal detachment"),
    ),
    Entry(
        names=("papilledema", "optic disc swelling", "optic disc edema"),
        descriptions=("swollen optic disc with blurred margins",),
        aliases=("papilloedema", "disc swelling", "optic disc oedema"),
    ),
    Entry(
        names=("optic atrophy", "pale optic disc"),
        descriptions=("pallor of the optic disc", "white disc with thin vessels"),
        aliases=("disc pallor", "optic disc pallor"),
    ),
    Entry(
        names=("myelinated nerve fibers", "myelinated nerve fibres"),
        descriptions=("white feathery patch at the disc margin",),
        aliases=("myelinated nerve fiber", "myelinated nerve fibre", "mnf"),
    ),
    Entry(
        names=("macular hole", "full thickness macular hole"),
        descriptions=("round, sharply bordered defect at the fovea",),
    ),
)

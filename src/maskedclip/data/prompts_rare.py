"""Names and descriptions of rarer findings, and of the classes of public data sets: words for `prompts`, no logic.

Written for this project from general ophthalmic knowledge, in the words that fundus reports use.  What the classes
DR1, DR2 and DR3 of JSIEC stand for is our reading of their names.
"""

from maskedclip.data.prompts_findings import Entry

RARE = (
    Entry(
        names=("any retinal disease", "abnormal fundus"),
        descriptions=("abnormal retina", "pathological changes of the retina or the optic disc"),
        aliases=("disease risk", "any disease", "abnormal"),
    ),
    Entry(
        names=("retinal disease", "retinopathy of any kind"),
        descriptions=("haemorrhages, exudates or scars in the retina", "diseased retina or choroid"),
        aliases=("retina disease", "other retinal disease"),
    ),
    Entry(
        names=("other disease", "other abnormality"),
        descriptions=("another retinal or optic nerve disorder", "an uncommon fundus finding"),
        aliases=("other", "others", "other diseases", "other diseases or abnormalities"),
    ),
    Entry(
        names=("established glaucoma", "definite glaucoma"),
        descriptions=("glaucomatous cupping with loss of the neuroretinal rim", "large cup, notched rim, pale disc"),
    ),
    Entry(
        names=("suspected glaucoma", "possible glaucoma", "glaucoma suspect"),
        descriptions=("borderline cup to disc ratio", "slightly enlarged optic cup, the rim is preserved"),
    ),
    Entry(
        names=("large optic cup", "physiologically large cup"),
        descriptions=("large disc with a large round cup and a healthy rim",),
    ),
    Entry(
        names=("optic disc cupping",),
        descriptions=("deep, wide excavation of the optic disc", "cup takes up most of the disc"),
        aliases=("odc",),
    ),
    Entry(
        names=("branch retinal vein occlusion",),
        descriptions=("flame-shaped haemorrhages in one quadrant", "haemorrhages along one occluded vein"),
        aliases=("brvo",),
    ),
    Entry(
        names=("central retinal vein occlusion",),
        descriptions=("haemorrhages in all quadrants with dilated, tortuous veins", "blood and thunder fundus"),
        aliases=("crvo",),
    ),
    Entry(
        names=("retinal artery occlusion",),
        descriptions=("pale, swollen retina with narrowed arteries", "ischaemic whitening of the retina"),
        aliases=("rao",),
    ),
    Entry(
        names=("central retinal artery occlusion",),
        descriptions=("cherry red spot in a pale retina", "whole posterior pole pale, arteries thread-like"),
        aliases=("crao",),
    ),
    Entry(
        names=("branch retinal artery occlusion",),
        descriptions=("whitened sector of the retina along one artery",),
        aliases=("brao",),
    ),
    Entry(
        names=("retinal arterial plaque", "Hollenhorst plaque"),
        descriptions=("bright refractile plaque at the fork of an artery",),
        aliases=("plaque", "plq"),
    ),
    Entry(
        names=("rhegmatogenous retinal detachment",),
        descriptions=("grey, folded, elevated retina with a tear",),
        aliases=("rhegmatogenous rd",),
    ),
    Entry(
        names=("central serous chorioretinopathy", "central serous retinopathy"),
        descriptions=("round blister of clear fluid under the macula", "serous detachment of the macula"),
        aliases=("csr", "cscr", "csc"),
    ),
    Entry(
        names=("Vogt-Koyanagi-Harada disease",),
        descriptions=("several serous detachments with disc hyperaemia", "sunset glow fundus"),
        aliases=("vkh disease", "vkh"),
    ),
    Entry(
        names=("maculopathy", "macular degeneration of any kind"),
        descriptions=("drusen, pigment changes or scarring at the macula",),
    ),
    Entry(
        names=("severe hypertensive retinopathy", "malignant hypertensive retinopathy"),
        descriptions=("disc swelling, macular star, cotton wool spots and flame haemorrhages with narrowed arteries",),
    ),
    Entry(
        names=("disc swelling and elevation", "elevated optic disc"),
        descriptions=("raised disc with obscured vessels and blurred margins",),
    ),
    Entry(
        names=("dragged disc",),
        descriptions=("vessels of the disc pulled to one side", "macula and vessels dragged temporally"),
    ),
    Entry(
        names=("congenital disc abnormality", "anomalous optic disc"),
        descriptions=("morning glory disc, disc pit or disc coloboma", "malformed optic disc"),
    ),
    Entry(
        names=("retinitis pigmentosa",),
        descriptions=(
            "bone spicule pigmentation in the mid periphery",
            "waxy pale disc, attenuated vessels and pigment clumps",
        ),
        aliases=("rp",),
    ),
    Entry(
        names=("Bietti crystalline dystrophy",),
        descriptions=("glistening yellow crystals in the retina with atrophy of the pigment epithelium",),
    ),
    Entry(
        names=("peripheral retinal degeneration and break", "retinal break"),
        descriptions=("lattice degeneration with holes in the periphery", "horseshoe tear of the peripheral retina"),
    ),
    Entry(
        names=("vitreous particles", "vitreous floaters"),
        descriptions=("many small bright or dark particles floating before the retina",),
    ),
    Entry(
        names=("asteroid hyalosis",),
        descriptions=("many creamy white spheres suspended in the vitreous",),
        aliases=("ah",),
    ),
    Entry(
        names=("fundus neoplasm", "choroidal tumour"),
        descriptions=("elevated pigmented or orange mass under the retina", "choroidal melanoma or haemangioma"),
    ),
    Entry(
        names=("massive hard exudates",),
        descriptions=("extensive confluent yellow exudates at the posterior pole",),
    ),
    Entry(
        names=("yellow-white spots and flecks", "white dots and flecks"),
        descriptions=("many pale yellow flecks scattered over the posterior pole",),
        aliases=("yellow-white spots-flecks", "yellow-white spots flecks"),
    ),
    Entry(
        names=("tortuous vessels", "vessel tortuosity"),
        descriptions=("winding, corkscrew retinal vessels",),
        aliases=("tv",),
    ),
    Entry(
        names=("chorioretinal atrophy or coloboma",),
        descriptions=("sharply bordered white area of bare sclera with pigmented margins",),
        aliases=("chorioretinal atrophy-coloboma",),
    ),
    Entry(
        names=("coloboma",),
        descriptions=("white, bowl-shaped defect of the inferior retina and choroid",),
        aliases=("cb", "choroidal coloboma"),
    ),
    Entry(
        names=("preretinal haemorrhage", "preretinal hemorrhage"),
        descriptions=("boat-shaped blood with a level before the retina", "subhyaloid haemorrhage"),
        aliases=("prh",),
    ),
    Entry(
        names=("fibrosis", "fibrovascular proliferation"),
        descriptions=("white fibrous membranes on the retina with traction",),
    ),
    Entry(
        names=("retinal traction", "vitreoretinal traction"),
        descriptions=("retina pulled up by fibrous bands",),
    ),
    Entry(
        names=("silicone oil in the eye",),
        descriptions=("bright reflexes of an oil bubble before the retina",),
        aliases=("silicon oil in eye", "silicone oil in eye"),
    ),
    Entry(
        names=("blurred fundus without proliferative diabetic retinopathy",),
        descriptions=("hazy photograph, retina indistinct", "blurred image through cloudy media"),
        aliases=("blur fundus without pdr", "blurred fundus without proliferative retinopathy"),
    ),
    Entry(
        names=("blurred fundus with suspected proliferative diabetic retinopathy",),
        descriptions=("hazy view with vitreous blood or new vessels", "dense vitreous haemorrhage hides the fundus"),
        aliases=("blur fundus with suspected pdr", "blurred fundus with suspected proliferative retinopathy"),
    ),
    Entry(
        names=("mild non proliferative diabetic retinopathy",),
        descriptions=("mild non proliferative retinopathy", "only a few microaneurysms"),
        aliases=("dr1",),
    ),
    Entry(
        names=("moderate or severe non proliferative diabetic retinopathy",),
        descriptions=(
            "moderate non proliferative retinopathy",
            "severe non proliferative retinopathy",
            "scattered haemorrhages with exudates and cotton wool spots",
        ),
        aliases=("dr2",),
    ),
    Entry(
        names=("proliferative diabetic retinopathy",),
        descriptions=("new vessels on the disc or elsewhere", "fibrovascular membranes with preretinal blood"),
        aliases=("dr3", "pdr"),
    ),
    Entry(
        names=("tessellated fundus", "tessellation"),
        descriptions=("choroidal vessels shine through a thin pigment epithelium", "tigroid fundus"),
        aliases=("tsln",),
    ),
    Entry(
        names=("macular scar",),
        descriptions=("pale, pigmented scar at the macula", "disciform scar"),
        aliases=("ms", "macular scars"),
    ),
    Entry(
        names=("optociliary shunt vessels", "optociliary shunt"),
        descriptions=("collateral vessels that leave the margin of the optic disc",),
    ),
    Entry(
        names=("anterior ischemic optic neuropathy", "anterior ischaemic optic neuropathy"),
        descriptions=("pale swelling of the disc with splinter haemorrhages",),
        aliases=("aion",),
    ),
    Entry(
        names=("parafoveal telangiectasia", "macular telangiectasia"),
        descriptions=("dilated capillaries and greyish retina temporal to the fovea",),
    ),
    Entry(
        names=("retinitis",),
        descriptions=("white, fluffy necrotic retina with haemorrhages", "inflamed retina with hazy vitreous"),
    ),
    Entry(
        names=("chorioretinitis",),
        descriptions=("yellowish chorioretinal focus with pigmented border", "inflammatory chorioretinal scars"),
        aliases=("crs",),
    ),
    Entry(
        names=("exudation", "retinal exudation"),
        descriptions=("yellow lipid deposits that leaked from vessels",),
        aliases=("edn",),
    ),
    Entry(
        names=("retinal pigment epithelium changes",),
        descriptions=("mottled pigment at the macula", "hyperpigmentation and depigmentation of the macula"),
        aliases=("rpec", "rpe changes"),
    ),
    Entry(
        names=("optic disc pit maculopathy",),
        descriptions=("grey pit in the optic disc with serous fluid at the macula",),
        aliases=("odpm",),
    ),
    Entry(
        names=("haemorrhagic retinopathy", "hemorrhagic retinopathy"),
        descriptions=("widespread retinal haemorrhages",),
    ),
    Entry(
        names=("tilted disc",),
        descriptions=("oval optic disc, obliquely inserted, with an inferior crescent",),
    ),
    Entry(
        names=("cystoid macular edema", "cystoid macular oedema"),
        descriptions=("honeycomb cysts at the fovea", "thickened fovea that has lost its reflex"),
        aliases=("cme",),
    ),
    Entry(
        names=("post-traumatic choroidal rupture", "choroidal rupture"),
        descriptions=("white crescent-shaped streak concentric with the disc",),
        aliases=("post traumatic choroidal rupture", "ptcr"),
    ),
    Entry(
        names=("choroidal folds",),
        descriptions=("parallel light and dark lines across the posterior pole",),
    ),
    Entry(
        names=("vitreous haemorrhage", "vitreous hemorrhage"),
        descriptions=("blood in the vitreous obscures the retina", "red haze before the fundus"),
        aliases=("vh",),
    ),
    Entry(
        names=("retinal macroaneurysm", "retinal arterial macroaneurysm"),
        descriptions=("round dilatation of an artery with blood and exudates around it",),
        aliases=("macroaneurysm", "mca"),
    ),
    Entry(
        names=("retinal vasculitis", "vasculitis"),
        descriptions=("white sheathing of the retinal vessels", "perivascular cuffing and exudation"),
    ),
    Entry(
        names=("haemorrhagic pigment epithelial detachment", "hemorrhagic pigment epithelial detachment"),
        descriptions=("dark, dome-shaped elevation with blood under the pigment epithelium",),
        aliases=("hped",),
    ),
    Entry(
        names=("collateral vessels", "collaterals"),
        descriptions=("fine winding vessels that bypass an occluded vein",),
        aliases=("collateral",),
    ),
)

/* webui's page: a short list of our samplers in the panel, until the user asks for all in the settings.
 *
 * The host's lists stay whole: the API, pasted texts, scripts and saved defaults may name every sampler.
 * Style rules leave out of the panel's menus what few people need, except for the one that is chosen.
 */
(function () {
    const MENUS = ["txt2img_sampling", "img2img_sampling", "hr_sampler"];
    const style = document.createElement("style");
    document.head.append(style);
    let hidden = [];

    function rules(name) {
        const text = JSON.stringify(name);
        const entry = `li[data-testid="dropdown-option"][aria-label=${text}]:not(.selected)`;
        const button = `label:has(> input[type="radio"][value=${text}]:not(:checked))`;
        const places = MENUS.flatMap((menu) => [`#${menu} ${entry}`, `#${menu} ${button}`]);
        return `${places.join(", ")} { display: none !important; }`;
    }

    function hide() {
        style.textContent = opts.dpm_solver_show_all_samplers ? "" : hidden.map(rules).join("\n");
    }

    onUiLoaded(async function () {
        const answer = await fetch("dpm_solver/hidden_samplers");
        hidden = answer.ok ? await answer.json() : [];
        hide();
    });
    onOptionsChanged(hide);
})();

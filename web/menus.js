/* A short list of samplers in the menus of the page.
 *
 * The host accepts every sampler of the pack, and its list of them stays whole. This leaves those that
 * few people need out of what a menu shows, until the user asks for all in the settings. A value that
 * is set is always in its menu: that of a workflow file, of a pasted image, or set by another extension.
 */
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

const SHOW_ALL = "DPMSolver.ShowAllSamplers";

/* If the pack can't say which samplers to leave out, menus show all. */
async function hiddenSamplers() {
    try {
        const answer = await api.fetchApi("/dpm_solver/hidden_samplers");
        return new Set(answer.ok ? await answer.json() : []);
    } catch {
        return new Set();
    }
}

const hidden = await hiddenSamplers();

function shown(values, value) {
    if (!Array.isArray(values) || app.ui.settings.getSettingValue(SHOW_ALL)) return values;
    return values.filter((name) => name === value || !hidden.has(name));
}

/* The page assigns `values` anew when node definitions are refreshed, so that this is a property with
 * a setter. It reads the setting each time, which then counts at once. */
function shorten(widget) {
    let values = widget.options.values;
    Object.defineProperty(widget.options, "values", {
        configurable: true,
        enumerable: true,
        get: () => shown(values, widget.value),
        set: (given) => {
            values = given;
        },
    });
}

function listsSamplers(widget) {
    const values = widget.type === "combo" ? widget.options?.values : null;
    return Array.isArray(values) && values.some((name) => hidden.has(name));
}

app.registerExtension({
    name: "DPMSolver.Menus",
    settings: [
        {
            id: SHOW_ALL,
            category: ["DPM-Solver", "DPM-Solver", "ShowAllSamplers"],
            name: "Show all samplers in menus",
            tooltip:
                "Off: of DPM-Solver's samplers, menus show those that most people need. The others " +
                "stay valid, and a workflow that has one keeps it.",
            type: "boolean",
            defaultValue: false,
        },
    ],
    nodeCreated(node) {
        (node.widgets ?? []).filter(listsSamplers).forEach(shorten);
    },
});

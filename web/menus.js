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

const wholeLists = new WeakMap();

/* The list is read each time, with the setting, which then counts at once. */
function shorten(widget, wholeList, replace) {
    wholeLists.set(widget, wholeList);
    Object.defineProperty(widget.options, "values", {
        configurable: true,
        enumerable: true,
        get: () => shown(wholeList(), widget.value),
        set: replace,
    });
}

/* The page assigns `values` anew when node definitions are refreshed. */
function shortenOwn(widget) {
    let values = widget.options.values;
    shorten(
        widget,
        () => values,
        (given) => {
            values = given;
        },
    );
}

function named(node, input) {
    return node?.widgets?.find((one) => one.name === (input?.widget?.name ?? input?.name));
}

function widgetInside(subgraph, slot) {
    const link = subgraph.getLink?.(subgraph.inputs[slot]?.linkIds?.[0]);
    const node = link && subgraph.getNodeById(link.target_id);
    return named(node, node?.inputs?.[link.target_slot]);
}

/* A subgraph's node that shows a menu from inside has a value of its own, and a copy of the list that
 * the page made for the value inside. Here it gets the whole list, made short for its own value. */
function shortenOutside(graph) {
    for (const node of graph?.nodes ?? []) {
        if (!node.subgraph) continue;
        shortenOutside(node.subgraph);
        for (const [slot, input] of (node.inputs ?? []).entries()) {
            const [outside, inside] = [named(node, input), widgetInside(node.subgraph, slot)];
            const wholeList = wholeLists.get(inside);
            if (!wholeList || !outside?.options || outside.options === inside.options) continue;
            shorten(outside, wholeList, () => {});
        }
    }
}

function listsSamplers(widget) {
    const values = widget.type === "combo" ? widget.options?.values : null;
    return Array.isArray(values) && values.some((name) => hidden.has(name));
}

function shortenAllOutside() {
    shortenOutside(app.rootGraph ?? app.graph);
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
        (node.widgets ?? []).filter(listsSamplers).forEach(shortenOwn);
    },
    afterConfigureGraph: shortenAllOutside,
    /* The page copies the lists again after this call. */
    refreshComboInNodes() {
        setTimeout(shortenAllOutside);
    },
});

"use strict";
// The answers about pairs, from the tables of the page. Names of fields: vfiokit.web.page.
const data = JSON.parse(document.getElementById("data").textContent);
const words = data.words;
const functions = data.functions.map((row, number) => ({
  number, bdf: row[0], address: data.short ? row[0].slice(5) : row[0],
  kind: words[row[1]], name: words[row[2]], driver: words[row[3]], role: words[row[4]],
  acs: words[row[5]], group: row[6], parent: row[7], host: row[8], physfn: row[9],
  redirect: row[10], peerClass: row[11], translating: row[12],
}));
const REDIRECT_UNKNOWN = 1, REDIRECTS = 2;
const TYPES = ["bus-addr", "thru-host-bridge", "not-supported", "unknown"];
const WORDS = {
  "bus-addr": "direct", "thru-host-bridge": "through the host bridge",
  "not-supported": "refused", "unknown": "not known",
};
const stories = data.stories.map(([type, code, text, messages, unknown, hopeless, assigned]) =>
  ({ type: TYPES.indexOf(type), code, text, messages, unknown, hopeless, assigned }));
const blockSides = data.blocks.map((table) => Math.round(Math.sqrt(table.length)));
const farSide = Math.round(Math.sqrt(data.far.length));

function storyOf(provider, client) {
  const one = data.classes[functions[provider].peerClass];
  const other = data.classes[functions[client].peerClass];
  if (provider === client) return stories[one[3]];
  if (one[0] === other[0] && one[0] >= 0)
    return stories[data.blocks[one[0]][one[1] * blockSides[one[0]] + other[1]]];
  return stories[data.far[one[2] * farSide + other[2]]];
}

function chainOf(number) {
  const chain = [];
  for (let at = number; at >= 0; at = functions[at].parent) chain.push(at);
  return chain;
}

function explain(provider, client) {
  const story = storyOf(provider, client);
  const ours = chainOf(provider), theirs = chainOf(client);
  let common = -1, up = ours.length, down = theirs.length;
  for (let at = 0; at < ours.length && common < 0; at++) {
    const met = theirs.indexOf(ours[at]);
    if (met >= 0) { common = ours[at]; up = at; down = met; }
  }
  const met = common >= 0;
  const path = [...ours.slice(0, up), ...(met ? [common] : []), ...theirs.slice(0, down).reverse()];
  const tested = met ? [...ours.slice(0, up + 1), ...theirs.slice(0, down)] : [];
  const redirecting = tested.filter((number) => functions[number].redirect === REDIRECTS);
  const unseen = tested.filter((number) => functions[number].redirect === REDIRECT_UNKNOWN);
  const names = {
    provider: functions[provider].bdf, client: functions[client].bdf,
    common: met ? functions[common].bdf : "", distance: String(up + down),
    redirecting: redirecting.map((number) => functions[number].bdf).join(";").slice(0, 127),
  };
  const tell = (text) => text.replace(/\{(\w+)\}/g, (whole, name) => names[name] ?? whole);
  const device = (number) => functions[number].bdf.split(".")[0];
  const siblings = provider !== client && device(provider) === device(client) && data.siblings
    ? [data.siblings] : [];
  return {
    provider, client, type: TYPES[story.type], code: story.code, common, path, redirecting,
    distance: up + down, above: met ? chainOf(common).slice(1) : [],
    text: [...story.text.slice(0, 1).map(tell), ...siblings, ...story.text.slice(1).map(tell)], messages: story.messages.map(tell),
    hopeless: story.hopeless, assigned: tell(story.assigned),
    unknown: [
      ...unseen.map((number) => `whether ${functions[number].bdf} has an ACS redirect set`),
      ...story.unknown,
    ],
  };
}

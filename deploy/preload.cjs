// Loaded before our programs. An ES module that imports node:http gets all of its exports, three classes of Node's own
// fetch client among them, and with them that whole client: 17 MiB and 50 ms in each of our programs, which do not use it.
const http = require('node:http');

for (const name of ['WebSocket', 'CloseEvent', 'MessageEvent']) delete http[name];

'use strict';
// The agent of Node containers: connects to the daemon, runs the one task it is given, and exits.
//
// `node /usr/lib/flowmonkey/agent.cjs [SOCKET]`, with FLOWMONKEY_INSTANCE in the environment. The
// same as agent.py in the words of JavaScript, with its exit codes: 0 the result was taken; 3 there
// was no daemon for 15 minutes; 4 another instance has the job; 1 anything else.

const { Line } = require('./agentline.cjs');
const { Logs } = require('./agentlogs.cjs');
const { rehearse } = require('./agentrehearsal.cjs');
const { Run } = require('./agentrun.cjs');

const SOCKET = '/run/flowmonkey/agent.sock';
const exit = process.reallyExit.bind(process);

const line = new Line(process.argv[2] ?? SOCKET, process.env.FLOWMONKEY_INSTANCE);
const logs = new Logs(line);
const run = new Run(line, logs, () => exit(0));
delete process.env.FLOWMONKEY_INSTANCE;
process.argv.length = 1;
line.onPrepare = (root, entrypoint) => run.prepare(root, entrypoint);
line.onIdle = () => rehearse(() => line.hasTask);
line.onTask = (task) => {
  logs.begin();
  line.begin(task);
  run.execute(task);
};
logs.install();
run.install();
line.open();

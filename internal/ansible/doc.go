// Package ansible is the module colo_vm: it brings one VM to the state that a task names, and tells Ansible what it did.
//
// # Protocol
//
// Ansible runs the module as PROGRAM FILE. FILE holds the parameters as a JSON object, besides Ansible's own, whose names begin with _ansible_. The module
// prints one JSON object, and exits with 1 when it failed. What Ansible says of itself is read first: it runs binary modules under --check too, and only
// tells them so; a module that doesn't understand what it is told must not act.
//
// # How a task is carried out
//
// The module looks at the VM from both nodes, decides on the next step (a pure function of the goal and what was seen, [decide]), does it or waits, and looks
// again, until the goal is reached, a step is refused, or the time is up. So it makes no difference who else does something meanwhile: the nodes' recovery,
// which may be about to do the same, or another person. Each step is asked for as a dry run first: what a node refuses leaves no trace. Under --check
// the loop ends before its first step.
//
// An operation that was begun goes on when the module is ended or the time is up; the next run of the task waits for the rest.
//
// # Secrets
//
// No parameter is a secret: keys are named by path, and one that is given itself is refused without being repeated. With no_log neither
// parameters nor differences are in the reply. The module writes no log.
package ansible

// Package setup takes hosts to a protected VM: it makes the keys, a configuration for each machine of a site, brings them there and starts the first VM.
//
// A [Site] is what a person says, in one YAML file. From it and a folder of keys (an authority, the heartbeats' key, a certificate for each machine) a [Bundle] is
// made for each machine: all that it needs, in one tar file that only its owner may read. The machine itself takes it over ([Host.Join]), so a host changes only by a
// command that was given on it, by a person or over ssh.
//
// Everything is a list of steps that know whether they are done already ([Plan]): the list can be shown before, and a second run does only what the first one
// did not. Nothing here is safe for concurrent use on the same folder or host.
package setup

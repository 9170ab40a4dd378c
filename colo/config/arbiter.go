package config

import (
	"fmt"
	"slices"
	"strings"

	"github.com/coloctl/coloctl/colo"
)

// Kinds of arbiters.
const (
	ArbiterNone    = "none" // only proof or a person promotes a secondary; every status says so
	ArbiterWitness = "witness"
	ArbiterEtcd    = "etcd"
	ArbiterFence   = "fence"
)

// Arbiter says who decides which copy may go on.
type Arbiter struct {
	Kind      string        `yaml:"kind"`                // none, witness, etcd or fence: having none must be said
	Witnesses []Witness     `yaml:"witnesses,omitempty"` // one or two
	HoldDown  colo.Duration `yaml:"hold-down,omitempty"` // how long the deciding one of two witnesses must be silent before the other one decides; 5s
	Etcd      *Etcd         `yaml:"etcd,omitempty"`
	Fence     *Fence        `yaml:"fence,omitempty"`
}

// Witness is a small third voter.
type Witness struct {
	Name    string `yaml:"name"` // in its certificate
	Address string `yaml:"address"`
}

// Etcd is a cluster of it.
type Etcd struct {
	Endpoints    []string      `yaml:"endpoints"`
	Prefix       string        `yaml:"prefix,omitempty"`
	CA           string        `yaml:"ca,omitempty"`
	Cert         string        `yaml:"cert,omitempty"`
	Key          string        `yaml:"key,omitempty"`
	Username     string        `yaml:"username,omitempty"`
	PasswordFile string        `yaml:"password-file,omitempty"`
	ClusterID    uint64        `yaml:"cluster-id,omitempty"` // the only one to be trusted; any when 0
	Timeout      colo.Duration `yaml:"timeout,omitempty"`    // of a call; 5s
}

// Fence is an arbiter without a third machine: a node may go on when it has powered the other one off.
type Fence struct {
	Devices []Device      `yaml:"devices"`           // asked in this order until one succeeds
	Delay   colo.Duration `yaml:"delay,omitempty"`   // before fencing; longer than an agent runs, on one of the two nodes only
	Timeout colo.Duration `yaml:"timeout,omitempty"` // of a fencing as a whole; 3m
}

// Device is what cuts the peer's power, by a ClusterLabs fence agent.
type Device struct {
	Agent    string            `yaml:"agent"`               // program, for example fence_ipmilan
	Options  map[string]string `yaml:"options,omitempty"`   // of the agent, without action; never logged
	Timeout  colo.Duration     `yaml:"timeout,omitempty"`   // of one run; 60s
	Action   string            `yaml:"action,omitempty"`    // off (default) or reboot
	NoVerify bool              `yaml:"no-verify,omitempty"` // don't ask for the status afterwards
}

func (a *Arbiter) validate(bad badFunc) {
	kinds := []string{ArbiterNone, ArbiterWitness, ArbiterEtcd, ArbiterFence}
	if !slices.Contains(kinds, a.Kind) {
		bad("arbiter.kind", "%q: expected one of %s", a.Kind, strings.Join(kinds, ", "))
		return
	}
	for kind, present := range map[string]bool{ArbiterWitness: len(a.Witnesses) > 0, ArbiterEtcd: a.Etcd != nil, ArbiterFence: a.Fence != nil} {
		field := "arbiter." + map[string]string{ArbiterWitness: "witnesses", ArbiterEtcd: "etcd", ArbiterFence: "fence"}[kind]
		switch {
		case kind == a.Kind && !present:
			bad(field, "missing")
		case kind != a.Kind && present:
			bad(field, "belongs to the kind %s, not to %s", kind, a.Kind)
		}
	}
	if len(a.Witnesses) > 2 {
		bad("arbiter.witnesses[2]", "expected one or two")
	}
	for i, w := range a.Witnesses {
		at := fmt.Sprintf("arbiter.witnesses[%d]", i)
		if !nodeName.MatchString(w.Name) {
			bad(at+".name", "%q is not a name", w.Name)
		} else if i > 0 && w.Name == a.Witnesses[0].Name {
			bad(at+".name", "%q is used twice", w.Name)
		}
		validateHostPort(at+".address", w.Address, bad)
	}
	if e := a.Etcd; e != nil {
		if len(e.Endpoints) == 0 {
			bad("arbiter.etcd.endpoints", "missing")
		}
		if (e.Cert == "") != (e.Key == "") {
			bad("arbiter.etcd.cert", "cert and key belong together")
		}
		if (e.Username == "") != (e.PasswordFile == "") {
			bad("arbiter.etcd.username", "username and password-file belong together")
		}
	}
	if f := a.Fence; f != nil {
		f.validate(bad)
	}
}

func (f *Fence) validate(bad badFunc) {
	if len(f.Devices) == 0 {
		bad("arbiter.fence.devices", "missing")
	}
	for i, d := range f.Devices {
		at := fmt.Sprintf("arbiter.fence.devices[%d]", i)
		if d.Agent == "" {
			bad(at+".agent", "missing")
		}
		if _, ok := d.Options["action"]; ok {
			bad(at+".options.action", "is chosen by the daemon: use the device's action")
		}
		if d.Action != "" && d.Action != "off" && d.Action != "reboot" {
			bad(at+".action", "%q: expected off or reboot", d.Action)
		}
	}
	if f.Delay < 0 || f.Timeout < 0 {
		bad("arbiter.fence", "delay and timeout can't be negative")
	}
}

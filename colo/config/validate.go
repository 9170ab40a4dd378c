package config

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/coloctl/coloctl/colo"
)

// badFunc notes that a field is wrong.
type badFunc func(field, format string, args ...any)

// Validate reports every wrong field, joined; each is a [*colo.InvalidSpecError].
func (c *Config) Validate() error {
	var errs []error
	bad := func(field, format string, args ...any) {
		errs = append(errs, &colo.InvalidSpecError{Field: "$." + field, Msg: fmt.Sprintf(format, args...)})
	}
	if !nodeName.MatchString(c.Node) {
		bad("node", "%q is not a name: expected a letter, then at most 30 lower-case letters, digits or dashes", c.Node)
	}
	for field, argv := range map[string][]string{"command": c.QEMU.Command, "img": c.QEMU.Img} {
		if argv[0] == "" {
			bad("qemu."+field, "its program is empty: expected a name or path")
		}
	}
	if c.QEMU.Accel != "kvm" && c.QEMU.Accel != "tcg" {
		bad("qemu.accel", "%q: expected kvm or tcg", c.QEMU.Accel)
	}
	if _, err := c.QEMU.user(); err != nil {
		bad("qemu.user", "%v", err)
	}
	if e := c.Replication.Encryption; e != "on" && e != "off" {
		bad("replication.encryption", "%q: expected on or off", e)
	}
	c.validateLauncher(bad)
	if c.Ports.First < 1024 || c.Ports.Last > 65535 || c.Ports.Last-c.Ports.First < 8 {
		bad("ports", "%d-%d: expected at least 8 ports between 1024 and 65535", c.Ports.First, c.Ports.Last)
	}
	for i, b := range c.Bridges {
		if b == "" || len(b) > 15 {
			bad(fmt.Sprintf("bridges[%d]", i), "%q: expected the name of a bridge, 1 to 15 characters", b)
		}
	}
	c.validateTimes(bad)
	own := validateLinks(c.Links, "links", bad)
	c.validatePeers(own, bad)
	c.Arbiter.validate(bad)
	if c.Arbiter.Kind == ArbiterFence && len(c.Peers) == 0 {
		bad("arbiter.kind", "fence needs a peer: it is whom to power off")
	}
	c.validateAPI(bad)
	return errors.Join(errs...)
}

func (c *Config) validateLauncher(bad badFunc) {
	switch c.Launcher {
	case LauncherColod:
		if c.Libvirt != nil {
			bad("libvirt", "is only for launcher: %s", LauncherLibvirt)
		}
	case LauncherLibvirt:
		if l := c.Libvirt; l != nil && l.URI != "" && l.URI != "qemu:///system" && l.URI != "qemu:///session" {
			bad("libvirt.uri", "%q: expected qemu:///system or qemu:///session; a libvirtd elsewhere on this host is named by its socket", l.URI)
		}
		if len(c.QEMU.Command) > 1 {
			bad("qemu.command", "%q: libvirt starts QEMU by one program's path", strings.Join(c.QEMU.Command, " "))
		}
	default:
		bad("launcher", "%q: expected %s or %s", c.Launcher, LauncherColod, LauncherLibvirt)
	}
}

func (c *Config) validateTimes(bad badFunc) {
	h := c.Heartbeat
	if h.KeyFile == "" {
		bad("heartbeat.key-file", "missing: make one with coloctl pki heartbeat-key and copy it to both nodes")
	}
	if h.Port < 1 || h.Port > 65535 {
		bad("heartbeat.port", "%d: expected 1 to 65535", h.Port)
	}
	if d := time.Duration(h.Interval); d < 10*time.Millisecond || d > 10*time.Second {
		bad("heartbeat.interval", "%s: expected 10ms to 10s", d)
	}
	if h.Timeout < 3*h.Interval || time.Duration(h.Timeout) > time.Minute {
		bad("heartbeat.timeout", "%s: expected at least three intervals of %s, and at most 1m", h.Timeout, h.Interval)
	}
	if d := time.Duration(c.Verify.Every); d < time.Hour {
		bad("verify.every", "%s: expected at least 1h", d)
	}
	if l := c.Verify.Limit; l < 1<<20 {
		bad("verify.limit", "%s: expected at least 1MiB (a second)", l)
	}
	if l := c.Limits; l.VCPUs < 0 || l.Off && (l.VCPUs > 0 || l.Memory > 0) {
		bad("limits", "%d vcpus, %s of memory, off: %v: expected numbers above 0, or off", l.VCPUs, l.Memory, l.Off)
	}
	if r := c.Resync; r.Parallel < 1 {
		bad("resync.parallel", "%d: expected 1 or more", r.Parallel)
	}
	if d := time.Duration(c.HangTimeout); d < 100*time.Millisecond || d > 5*time.Minute {
		bad("hang-timeout", "%s: expected 100ms to 5m", d)
	}
	if d := time.Duration(c.Watchdog.Timeout); d != 0 && (d < 2*time.Second || d > 10*time.Minute) {
		bad("watchdog.timeout", "%s: expected 2s to 10m", d)
	}
	if c.Watchdog.Device == "" && c.Watchdog.Timeout != 0 {
		bad("watchdog.device", "missing: a timeout alone arms nothing")
	}
	for field, d := range map[string]colo.Duration{"hold-down": c.Recovery.HoldDown, "primary-first": c.Recovery.PrimaryFirst, "window": c.Recovery.Window} {
		if d < 0 || time.Duration(d) > 24*time.Hour {
			bad("recovery."+field, "%s: expected 0s to 24h", d)
		}
	}
	if d := time.Duration(c.Replication.MaxLinkRTT); d != 0 && (d < 100*time.Microsecond || d > 10*time.Second) {
		bad("replication.max-link-rtt", "%s: expected 100us to 10s", d)
	}
	if c.Recovery.Attempts < 0 {
		bad("recovery.attempts", "%d: expected 1 or more", c.Recovery.Attempts)
	}
}

// validateLinks returns the links' names.
func validateLinks(links []Link, at string, bad badFunc) []string {
	var names []string
	seen := map[netip.Addr]bool{}
	if len(links) == 0 {
		bad(at, "missing: a node needs at least one replication link")
	}
	for i, l := range links {
		field := fmt.Sprintf("%s[%d]", at, i)
		if !linkName.MatchString(l.Name) {
			bad(field+".name", "%q: expected a letter, then at most 15 lower-case letters, digits or dashes", l.Name)
		} else if slices.Contains(names, l.Name) {
			bad(field+".name", "%q is used twice", l.Name)
		}
		names = append(names, l.Name)
		a, err := netip.ParseAddr(l.Address)
		switch {
		case err != nil:
			bad(field+".address", "%q: expected an IP address", l.Address)
		case a.IsUnspecified() || a.IsMulticast():
			bad(field+".address", "%s: expected the address of this host on that network", a)
		case seen[a]:
			bad(field+".address", "%s belongs to another link already", a)
		}
		seen[a] = true
	}
	return names
}

func (c *Config) validatePeers(own []string, bad badFunc) {
	if k := c.Arbiter.Kind; len(c.Peers) > 1 && k != ArbiterWitness && k != ArbiterEtcd {
		bad("peers[1]", "more than two nodes need an arbiter of the kind %s or %s: who may go on can't be told by proof", ArbiterWitness, ArbiterEtcd)
	}
	for i, p := range c.Peers {
		at := fmt.Sprintf("peers[%d]", i)
		switch {
		case slices.ContainsFunc(c.Peers[:i], func(o Peer) bool { return o.Name == p.Name }):
			bad(at+".name", "%s is named twice", p.Name)
		case !nodeName.MatchString(p.Name):
			bad(at+".name", "%q is not the name of a node", p.Name)
		case p.Name == c.Node:
			bad(at+".name", "%q is this node's own name: two nodes can't have the same", p.Name)
		}
		if len(p.API) == 0 {
			bad(at+".api", "missing: the addresses of the peer's daemon, as host:port")
		}
		for j, a := range p.API {
			validateHostPort(fmt.Sprintf("%s.api[%d]", at, j), a, bad)
		}
		if p.HeartbeatPort < 1 || p.HeartbeatPort > 65535 {
			bad(at+".heartbeat-port", "%d: expected 1 to 65535", p.HeartbeatPort)
		}
		names := validateLinks(p.Links, at+".links", bad)
		for j, l := range p.Links {
			if !slices.Contains(own, l.Name) {
				bad(fmt.Sprintf("%s.links[%d].name", at, j), "%q is none of this node's links: expected one of %s", l.Name, strings.Join(own, ", "))
			}
		}
		for j, l := range c.Links {
			if !slices.Contains(names, l.Name) && len(c.Peers) == 1 {
				bad(fmt.Sprintf("links[%d].name", j), "%q: the peer %s has no end of this link", l.Name, p.Name)
			}
			for _, r := range p.Links {
				if r.Address == l.Address && c.Heartbeat.Port == p.HeartbeatPort {
					bad(fmt.Sprintf("links[%d].address", j), "%s is the peer's address too", l.Address)
				}
			}
		}
	}
}

func validateHostPort(field, text string, bad badFunc) {
	host, port, err := net.SplitHostPort(text)
	if err != nil || !isPort(port, 1) || host == "" {
		bad(field, "%q: expected host:port", text)
	}
}

func isPort(text string, least int) bool {
	n, err := strconv.Atoi(text)
	return err == nil && n >= least && n <= 65535
}

func (c *Config) validateAPI(bad badFunc) {
	validateListen("api.listen", c.API.Listen, bad)
	if len(c.Peers) > 0 && len(c.API.Listen) == 0 {
		bad("api.listen", "missing: the peer has to reach this daemon")
	}
	if len(c.API.Socket) > 90 {
		bad("api.socket", "%s is too long for a socket: expected at most 90 characters", c.API.Socket)
	}
	c.TLS.validate(bad)
	c.Log.validate(bad)
}

package config

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/coloctl/coloctl/colo/api/pki"
	"github.com/coloctl/coloctl/colo/arbiter/fence"
	"github.com/coloctl/coloctl/internal/netns"
	"github.com/coloctl/coloctl/netcompare"
)

// Finding is one rule that was looked at on this host.
type Finding struct {
	Rule   string `json:"rule"`
	OK     bool   `json:"ok"`
	Text   string `json:"text"`
	Remedy string `json:"remedy,omitempty"` // what to do when it is not ok
}

// expirySoon is how long before its end a certificate is worth a warning.
const expirySoon = 30 * 24 * time.Hour

type findings []Finding

func (f *findings) add(rule string, err error, good, remedy string) {
	if err != nil {
		*f = append(*f, Finding{Rule: rule, Text: err.Error(), Remedy: remedy})
		return
	}
	*f = append(*f, Finding{Rule: rule, OK: true, Text: good})
}

// Inspect compares the configuration with this host, without changing anything.
func (c *Config) Inspect() []Finding {
	var out findings
	out.add("state folder", folder(c.StateDir), c.StateDir, "make it, owned by the daemon's user, mode 0700")
	out.add("storage folder", folder(c.StorageDir), c.StorageDir, "make it, or name another one in storage-dir")
	for _, p := range []struct {
		name string
		argv []string
	}{{"qemu", c.QEMU.Command}, {"qemu-img", c.QEMU.Img}} {
		path, err := exec.LookPath(p.argv[0])
		out.add(p.name, err, path, "install QEMU (Debian: qemu-system-x86, qemu-utils), or name it in qemu")
	}
	if c.QEMU.Accel == "kvm" {
		f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
		if err == nil {
			_ = f.Close()
		}
		out.add("kvm", err, "/dev/kvm", "switch virtualisation on in the firmware and load kvm, or set qemu.accel to tcg")
	} else {
		out.add("accelerator", nil, "tcg: slow, and for trials only: a standby may run code that the guest has replaced", "")
	}
	if s, ok := c.libvirt(); ok {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		text, err := s.Ready(ctx)
		cancel()
		out.add("libvirt", err, text, "install libvirt (Debian: libvirt-daemon-system), start it, and let the daemon's user connect; or set launcher to colod")
	}
	_, err := ReadKey(c.Heartbeat.KeyFile)
	out.add("heartbeat key", err, c.Heartbeat.KeyFile, "make one with coloctl pki heartbeat-key and copy it to both nodes")
	creds, err := c.Credentials()
	out.add("certificate", usable(creds, err), c.TLS.Identity, "issue one: coloctl pki issue node "+c.Node+", with --renew where there was one")
	_, err = c.SocketGID()
	group := c.API.SocketGroup
	if group == "" {
		group = "none: the socket is its owner's and root's"
	}
	out.add("socket group", err, group, "make the group, or name another one in api.socket-group")
	links, bridges := c.network()
	for i, l := range c.Links {
		out.add("link "+l.Name, links[i], l.Address, "give this host the address, or name the one it has")
	}
	for i, b := range c.Bridges {
		out.add("bridge "+b, bridges[i], b, "make the bridge; it needs no address of its own")
	}
	var plain error
	if c.Replication.Encryption == "off" {
		plain = fmt.Errorf("off: whoever reaches TCP ports %d to %d on the links' addresses can read and write VMs' disks, memory and packets", c.Ports.First, c.Ports.Last)
	}
	out.add("encryption", plain, "replication is encrypted", "take replication: {encryption: off} out of both nodes' files, unless nobody else can reach the links")
	out.add("gate", netcompare.Host{Netns: c.Netns}.CheckGate(context.Background()), "nftables can silence a tap by itself",
		"use a kernel with nf_tables and its netdev family (CONFIG_NF_TABLES_NETDEV); without it ARP and IPv6 of a primary whose daemon stands still are not held")
	if w := c.Watchdog.Device; w != "" {
		out.add("watchdog", character(w), w, "load the machine's watchdog driver, or softdog, or take watchdog out of the configuration")
	}
	out.addListen(c.API.Listen)
	for _, w := range c.Arbiter.Witnesses {
		out.add("witness "+w.Name, c.apart(w.Address), w.Address, "run it on a third machine, and name that one's address in arbiter")
	}
	if f := c.Arbiter.Fence; f != nil {
		for _, d := range f.Devices {
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			out.add("fence agent "+d.Agent, d.FenceAgent().Check(ctx), "it is there and knows its options", "install it (Debian: fence-agents), and look at its options")
			cancel()
		}
	}
	return out
}

// apart says whether an address is neither this node's nor the peer's, as far as names and numbers tell.
func (c *Config) apart(address string) error {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return err
	}
	if ip := net.ParseIP(host); ip != nil && ip.IsLoopback() {
		return fmt.Errorf("%s is this host's: there it would die with the node", host)
	}
	own, err := ownAddresses()
	if err != nil {
		return err
	}
	nodes := slices.Collect(maps.Keys(own))
	links, listens := slices.Clone(c.Links), slices.Clone(c.API.Listen)
	for _, p := range c.Peers {
		links, listens = append(links, p.Links...), append(listens, p.API...)
	}
	for _, l := range links {
		nodes = append(nodes, l.Address)
	}
	for _, a := range listens {
		if h, _, err := net.SplitHostPort(a); err == nil && h != "" {
			nodes = append(nodes, h)
		}
	}
	if slices.Contains(nodes, host) {
		return fmt.Errorf("%s is a node's: there it would die with the node", host)
	}
	return nil
}

// addListen looks whether the addresses are this host's. The daemon listens on them either way, as they may come later.
func (f *findings) addListen(list []string) {
	have, err := ownAddresses()
	for _, a := range list {
		host, _, _ := net.SplitHostPort(a)
		missing := err
		if ip := net.ParseIP(host); missing == nil && ip != nil && !ip.IsUnspecified() && !ip.IsLoopback() && !have[ip.String()] {
			missing = fmt.Errorf("no interface has the address %s", host)
		}
		f.add("listen "+a, missing, a, "give this host the address, or name the one it has")
	}
}

func ownAddresses() (map[string]bool, error) {
	addrs, err := net.InterfaceAddrs()
	have := map[string]bool{}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok {
			have[n.IP.String()] = true
		}
	}
	return have, err
}

// character doesn't open the device: that would arm it.
func character(path string) error {
	st, err := os.Stat(path)
	if err == nil && st.Mode()&os.ModeCharDevice == 0 {
		err = fmt.Errorf("%s is no device", path)
	}
	return err
}

func folder(path string) error {
	st, err := os.Stat(path)
	if err == nil && !st.IsDir() {
		err = fmt.Errorf("%s is no folder", path)
	}
	return err
}

// network looks at links and bridges where the node's QEMUs are.
func (c *Config) network() (links, bridges []error) {
	links, bridges = make([]error, len(c.Links)), make([]error, len(c.Bridges))
	err := netns.Do(c.Netns, func() error {
		have, err := ownAddresses()
		if err != nil {
			return err
		}
		for i, l := range c.Links {
			if ip := net.ParseIP(l.Address); !have[ip.String()] && !ip.IsLoopback() {
				links[i] = fmt.Errorf("no interface has the address %s", l.Address)
			}
		}
		for i, b := range c.Bridges {
			link, err := netlink.LinkByName(b)
			switch {
			case errors.As(err, &netlink.LinkNotFoundError{}):
				bridges[i] = fmt.Errorf("there is no interface %s", b)
			case err != nil:
				bridges[i] = err
			case link.Type() != "bridge":
				bridges[i] = fmt.Errorf("%s is a %s, not a bridge", b, link.Type())
			}
		}
		return nil
	})
	if err != nil {
		for i := range links {
			links[i] = err
		}
		for i := range bridges {
			bridges[i] = err
		}
	}
	return links, bridges
}

// Credentials loads the node's certificate, which must carry its name.
func (c *Config) Credentials() (*pki.Credentials, error) {
	return c.TLS.load(pki.Identity{Role: pki.Node, Name: c.Node})
}

// ExpiryWarning says that a certificate ends soon; empty if it doesn't.
func ExpiryWarning(creds *pki.Credentials) string {
	if left := time.Until(creds.NotAfter()); left < expirySoon {
		return fmt.Sprintf("the certificate of %s ends in %s: issue a new one", creds.Identity(), left.Round(time.Hour))
	}
	return ""
}

// SocketGID is the group of the API's socket; -1 if none is configured.
func (c *Config) SocketGID() (int, error) {
	if c.API.SocketGroup == "" {
		return -1, nil
	}
	if n, err := strconv.Atoi(c.API.SocketGroup); err == nil && n >= 0 {
		return n, nil
	}
	g, err := user.LookupGroup(c.API.SocketGroup)
	if err != nil {
		return -1, err
	}
	return strconv.Atoi(g.Gid)
}

// StateFile is the node's store.
func (c *Config) StateFile() string { return filepath.Join(c.StateDir, "state.db") }

// FenceFile is where the node keeps its half of an arbiter by fencing.
func (c *Config) FenceFile() string { return filepath.Join(c.StateDir, "fence.db") }

// FenceAgent is the device's agent, ready to be run.
func (d *Device) FenceAgent() fence.Agent {
	return fence.Agent{Path: d.Agent, Options: d.Options, Timeout: time.Duration(d.Timeout), Action: fence.Action(d.Action), NoVerify: d.NoVerify}
}

// LedgerFile is where the node notes what it promised two witnesses.
func (c *Config) LedgerFile() string { return filepath.Join(c.StateDir, "witnesses.db") }

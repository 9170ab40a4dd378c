package lab

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml"

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/colo/api/pki"
	"github.com/coloctl/coloctl/colo/config"
)

const (
	apiPort     = 7789
	witnessPort = 7790
	etcdPort    = 2379

	adminName = "lab" // whose certificate people in the lab use
	// ContextsName is the file with coloctl's contexts in the lab's folder: one of each node's name, by its socket, and [SiteContext].
	ContextsName = "contexts.yaml"
	// SiteContext is the context with both nodes, over the management network.
	SiteContext = "lab"
)

// writeSite makes everything that the daemons need before they start: certificates, the heartbeats' key, configurations, and contexts for
// coloctl. It does what a person does with coloctl pki, by the same package.
func (l *Lab) writeSite() error {
	ca := l.path("ca")
	if err := pki.InitCA(ca, pki.AuthorityOptions{}); err != nil {
		return err
	}
	names := l.Topology.Names
	ids := slices.Clone(identities)
	for _, name := range names[len(NodeNames):] {
		ids = append(ids, pki.Identity{Role: pki.Node, Name: name})
	}
	for _, id := range ids {
		if err := os.MkdirAll(l.path(id.Name), 0o700); err != nil {
			return err
		}
		if _, err := pki.Issue(ca, pki.IssueOptions{Identity: id, Out: l.path(id.Name)}); err != nil {
			return err
		}
	}
	key := filepath.Join(l.path(NodeNames[0]), "heartbeat.key")
	if err := config.WriteKey(key); err != nil {
		return err
	}
	text, err := os.ReadFile(key)
	for _, name := range names[1:] {
		if err == nil {
			err = os.WriteFile(l.path(name, "heartbeat.key"), text, 0o600)
		}
	}
	if err != nil {
		return err
	}
	for i, name := range names {
		for _, dir := range []string{"state", "disks", "run"} {
			if err := os.MkdirAll(l.path(name, dir), 0o700); err != nil {
				return err
			}
		}
		if l.opts.SmallState {
			if err := limitState(l.path(name, "state")); err != nil {
				return err
			}
		}
		if err := writeYAML(l.path(name, "colod.yaml"), l.nodeConfig(i)); err != nil {
			return err
		}
	}
	err = writeYAML(l.path(witnessName, "witness.yaml"), &config.WitnessConfig{
		Name: witnessName, State: witnessData, Listen: []string{hostPort(witnessName, witnessPort)}, HostID: witnessName,
		TLS: config.TLS{Identity: witnessName + ".pem", Trust: pki.TrustFile}, Log: config.Log{Level: "info", Format: "json"},
	})
	if err != nil {
		return err
	}
	return os.WriteFile(l.path(ContextsName), []byte(contexts(names)), 0o600)
}

func (l *Lab) nodeConfig(i int) *config.Config {
	me := l.Topology.Names[i]
	a := l.opts.Assets
	c := &config.Config{
		Node: me, StateDir: "state", RunDir: "run", StorageDir: "disks", HostID: me,
		QEMU:    config.QEMU{Command: a.QEMU, Img: a.QEMUImg, Accel: a.Accel},
		Bridges: []string{NodeBridge}, Ports: config.Ports{First: 9000, Last: 9099},
		Heartbeat: config.Heartbeat{KeyFile: "heartbeat.key"}, Recovery: config.Recovery{HoldDown: colo.Duration(l.opts.HoldDown), Attempts: l.opts.Attempts},
		Limits: config.Limits{Memory: 8 << 30, VCPUs: 32}, API: config.API{Listen: []string{hostPort(me, apiPort)}}, TLS: config.TLS{Identity: me + ".pem", Trust: pki.TrustFile},
		Log: config.Log{Level: "debug", Format: "text"},
	}
	for _, link := range l.Topology.Links {
		c.Links = append(c.Links, config.Link{Name: link.Name, Address: link.Addrs[me].Addr().String()})
		c.API.Listen = append(c.API.Listen, net.JoinHostPort(link.Addrs[me].Addr().String(), strconv.Itoa(apiPort)))
	}
	for _, other := range l.Topology.Names {
		if other == me {
			continue
		}
		peer := config.Peer{Name: other}
		for _, link := range l.Topology.Links {
			peer.Links = append(peer.Links, config.Link{Name: link.Name, Address: link.Addrs[other].Addr().String()})
			peer.API = append(peer.API, net.JoinHostPort(link.Addrs[other].Addr().String(), strconv.Itoa(apiPort)))
		}
		peer.API = append(peer.API, hostPort(other, apiPort))
		c.Peers = append(c.Peers, peer)
	}
	if l.opts.Launcher == config.LauncherLibvirt {
		c.Launcher = config.LauncherLibvirt
		c.Libvirt = &config.Libvirt{Socket: l.path(me, "libvirt", "run", "libvirt-sock"), LogDir: l.path(me, "libvirt", "log", "qemu")}
	}
	switch l.opts.Arbiter {
	case config.ArbiterEtcd:
		c.Arbiter = config.Arbiter{Kind: config.ArbiterEtcd, Etcd: &config.Etcd{Endpoints: []string{"http://" + hostPort(witnessName, etcdPort)}}}
	default:
		c.Arbiter = config.Arbiter{Kind: config.ArbiterWitness, Witnesses: []config.Witness{{Name: witnessName, Address: hostPort(witnessName, witnessPort)}}}
	}
	return c
}

// hostPort is an address on the management network.
func hostPort(host string, port int) string {
	return net.JoinHostPort(mgmtAddr(host).Addr().String(), strconv.Itoa(port))
}

func writeYAML(path string, v any) error {
	text, err := yaml.Marshal(v)
	if err != nil {
		return err
	}
	return os.WriteFile(path, text, 0o600)
}

// contexts is a file of coloctl's. Its paths are relative: it is used inside and outside the lab, which see the folder in different places.
func contexts(names []string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "current: %s\ncontexts:\n", SiteContext)
	for _, name := range names {
		fmt.Fprintf(&b, "  - {name: %s, socket: %s/run/api.sock}\n", name, name)
	}
	fmt.Fprintf(&b, "  - name: %s\n    identity: %[2]s/%[2]s.pem\n    trust: %[2]s/%[3]s\n    nodes:\n", SiteContext, adminName, pki.TrustFile)
	for _, name := range names {
		fmt.Fprintf(&b, "      - {name: %s, addresses: [%q]}\n", name, hostPort(name, apiPort))
	}
	return b.String()
}

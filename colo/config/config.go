// Package config reads the configuration of a node's daemon.
//
// One YAML file describes one node; it is read as strictly as a VM's spec, and its errors name file, line, column and field in the same way: each is a
// [*colo.InvalidSpecError]. Reading touches nothing but the file. What the host has of what the file names (keys, bridges, addresses) is looked at by
// [Config.Inspect]. Nothing here is safe for concurrent changes; a Config is not changed after it was read.
package config

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml/ast"

	"github.com/coloctl/coloctl/colo"
)

// Config is a node's configuration.
type Config struct {
	Node       string `yaml:"node"`
	StateDir   string `yaml:"state-dir,omitempty"`   // must survive everything; /var/lib/coloctl
	RunDir     string `yaml:"run-dir,omitempty"`     // may be lost at a reboot; /run/coloctl
	StorageDir string `yaml:"storage-dir,omitempty"` // disk images with relative paths; disks in StateDir
	OverlayDir string `yaml:"overlay-dir,omitempty"` // what secondaries keep between checkpoints; in RunDir when empty
	Netns      string `yaml:"netns,omitempty"`       // of QEMUs and taps; the daemon's own when empty
	// HostID tells a witness on which host this node runs, so that one on the same host is refused. Default: the running kernel's. Only a lab, whose hosts share
	// one kernel, needs others.
	HostID string `yaml:"host-id,omitempty"`

	QEMU     QEMU     `yaml:"qemu,omitempty"`
	Launcher string   `yaml:"launcher,omitempty"` // who starts QEMU: colod (default) or libvirt; the same on both nodes
	Libvirt  *Libvirt `yaml:"libvirt,omitempty"`  // only with launcher: libvirt
	Links    []Link   `yaml:"links"`
	Bridges  []string `yaml:"bridges,omitempty"` // that must exist: VMs' NICs are put into them
	Ports    Ports    `yaml:"ports,omitempty"`   // of replication, TCP; 19000-19999
	Peers    []Peer   `yaml:"peers,omitempty"`   // the other nodes; one, or several with an arbiter that is none of them

	Replication Replication `yaml:"replication,omitempty"`

	Heartbeat   Heartbeat     `yaml:"heartbeat,omitempty"`
	HangTimeout colo.Duration `yaml:"hang-timeout,omitempty"` // how long a QEMU may not answer, or a checkpoint last; 2s
	Recovery    Recovery      `yaml:"recovery,omitempty"`
	Verify      Verify        `yaml:"verify,omitempty"`
	Limits      Limits        `yaml:"limits,omitempty"`
	Resync      Resync        `yaml:"resync,omitempty"`
	Arbiter     Arbiter       `yaml:"arbiter"`

	Watchdog Watchdog `yaml:"watchdog,omitempty"`

	API API `yaml:"api,omitempty"`
	TLS TLS `yaml:"tls"`
	Log Log `yaml:"log,omitempty"`
}

// QEMU says which programs to run.
type QEMU struct {
	Command []string `yaml:"command,omitempty"` // argv prefix; qemu-system-x86_64
	Img     []string `yaml:"img,omitempty"`     // argv prefix; qemu-img
	Accel   string   `yaml:"accel,omitempty"`   // kvm (default) or tcg
	User    string   `yaml:"user,omitempty"`    // whom it runs as, unless libvirt starts it; colod's own user if empty
}

// Who may start QEMU.
const (
	LauncherColod   = "colod"
	LauncherLibvirt = "libvirt"
)

// Libvirt says where libvirtd is.
type Libvirt struct {
	URI    string `yaml:"uri,omitempty"`     // qemu:///system (default) or qemu:///session
	Socket string `yaml:"socket,omitempty"`  // libvirt's own for the URI when empty
	LogDir string `yaml:"log-dir,omitempty"` // of QEMU's output; libvirt's own for the URI when empty
}

// Link is this node's end of a replication network.
type Link struct {
	Name    string `yaml:"name"`
	Address string `yaml:"address"`
}

// Replication is how disks, memory and packets go to the peer.
type Replication struct {
	Encryption string        `yaml:"encryption,omitempty"`   // on (default), or off on links that nobody else can reach; the same on both nodes
	MaxLinkRTT colo.Duration `yaml:"max-link-rtt,omitempty"` // no VM is protected over links whose round trips take longer; no limit if left out
}

// Peer is the other node.
type Peer struct {
	Name          string   `yaml:"name"`
	API           []string `yaml:"api"`                      // host:port of its daemon, in order of preference
	Links         []Link   `yaml:"links"`                    // its ends of the links, by the same names
	HeartbeatPort int      `yaml:"heartbeat-port,omitempty"` // as here when 0
}

// Heartbeat tunes how the peer's loss is noticed.
type Heartbeat struct {
	KeyFile  string        `yaml:"key-file"`           // 32 random bytes in hexadecimal, the same on both nodes
	Port     int           `yaml:"port,omitempty"`     // UDP; 7788
	Interval colo.Duration `yaml:"interval,omitempty"` // 100ms
	Timeout  colo.Duration `yaml:"timeout,omitempty"`  // 400ms
}

// Recovery says what the node does by itself.
type Recovery struct {
	Off          bool          `yaml:"off,omitempty"`           // nothing but failover
	HoldDown     colo.Duration `yaml:"hold-down,omitempty"`     // how long a returned peer must be well before it is trusted with VMs; 5s
	PrimaryFirst colo.Duration `yaml:"primary-first,omitempty"` // how long a last secondary lets the last primary start first; 10s
	Attempts     int           `yaml:"attempts,omitempty"`      // failures within Window after which a person is needed; 5
	Window       colo.Duration `yaml:"window,omitempty"`        // 10m
}

// Verify says how often the halves of protected VMs are compared.
type Verify struct {
	Off   bool          `yaml:"off,omitempty"`
	Every colo.Duration `yaml:"every,omitempty"` // 720h, which are 30 days
	Limit colo.Size     `yaml:"limit,omitempty"` // what is read of each half in a second; 32MiB
}

// Limits are what VMs' copies may have here together. Without them it is what the machine has: its memory but for a quarter or 1 GiB, and four virtual CPUs for each of its own.
type Limits struct {
	Off    bool      `yaml:"off,omitempty"` // nothing is refused for want of room
	Memory colo.Size `yaml:"memory,omitempty"`
	VCPUs  int       `yaml:"vcpus,omitempty"`
}

// Resync bounds what VMs that become protected do at the same time.
type Resync struct {
	Parallel int       `yaml:"parallel,omitempty"` // so many at a time, by priority; 2
	Rate     colo.Size `yaml:"rate,omitempty"`     // bytes a second that all of them send together; no limit when 0
}

// Watchdog names a device that resets the host when the daemon's engine stands still.
type Watchdog struct {
	Device  string        `yaml:"device,omitempty"`  // for example /dev/watchdog; none when empty
	Timeout colo.Duration `yaml:"timeout,omitempty"` // after which the host is reset; 15s
}

// API says where the daemon answers.
type API struct {
	Socket      string   `yaml:"socket,omitempty"`       // unix; api.sock in the run folder
	SocketGroup string   `yaml:"socket-group,omitempty"` // may use the socket as an operator; name or number
	Listen      []string `yaml:"listen,omitempty"`       // host:port with TLS; what the peer calls must be among them
}

// TLS names the node's files, made by coloctl pki. They are read anew when they change.
type TLS struct {
	Identity string `yaml:"identity"` // NAME.pem
	Trust    string `yaml:"trust"`    // ca.crt
}

// Log says what is logged to standard error, and how.
type Log struct {
	Level  string `yaml:"level,omitempty"`  // debug, info (default), warn or error
	Format string `yaml:"format,omitempty"` // text (default) or json
}

var levels = map[string]slog.Level{"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError}

// SlogLevel is the level for the logger.
func (l *Log) SlogLevel() slog.Level { return levels[l.Level] }

// Ports is a range, written first-last.
type Ports struct{ First, Last int }

// UnmarshalYAML reads 19000-19999.
func (p *Ports) UnmarshalYAML(node ast.Node) error {
	tok := node.GetToken()
	a, b, ok := strings.Cut(tok.Value, "-")
	first, err1 := strconv.Atoi(strings.TrimSpace(a))
	last, err2 := strconv.Atoi(strings.TrimSpace(b))
	if !ok || err1 != nil || err2 != nil {
		return &colo.InvalidSpecError{Field: node.GetPath(), Msg: fmt.Sprintf("%q: expected a range like 19000-19999", tok.Value), Line: tok.Position.Line, Col: tok.Position.Column}
	}
	*p = Ports{first, last}
	return nil
}

// MarshalYAML writes what UnmarshalYAML reads.
func (p Ports) MarshalYAML() ([]byte, error) { return fmt.Appendf(nil, "%d-%d", p.First, p.Last), nil }

// Load reads a node's file.
func Load(file string) (*Config, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	c, err := Parse(data, file)
	if err != nil || c.Arbiter.Fence == nil {
		return c, err
	}
	if st, err := os.Stat(file); err != nil || st.Mode().Perm()&0o077 != 0 {
		return nil, errors.Join(err, &colo.InvalidSpecError{File: file, Field: "$.arbiter.fence", Msg: "its options hold passwords, and others may read the file: chmod 600"})
	}
	return c, nil
}

// Parse reads a node's configuration, fills in defaults and checks it. Relative paths are those of the file's folder.
func Parse(data []byte, file string) (*Config, error) {
	c := &Config{}
	if err := colo.ReadYAML(data, file, "configuration", c, func() error { c.setDefaults(folderOf(file)); return c.Validate() }); err != nil {
		return nil, err
	}
	return c, nil
}

// folderOf is absolute: QEMUs and later runs of the daemon get these paths too.
func folderOf(file string) string {
	if abs, err := filepath.Abs(file); err == nil {
		file = abs
	}
	return filepath.Dir(file)
}

func setDefault[T comparable](v *T, def T) {
	var zero T
	if *v == zero {
		*v = def
	}
}

func (c *Config) setDefaults(dir string) {
	setDefault(&c.StateDir, "/var/lib/coloctl")
	setDefault(&c.RunDir, "/run/coloctl")
	setDefault(&c.StorageDir, filepath.Join(c.StateDir, "disks"))
	if len(c.QEMU.Command) == 0 {
		c.QEMU.Command = []string{"qemu-system-x86_64"}
	}
	if len(c.QEMU.Img) == 0 {
		c.QEMU.Img = []string{"qemu-img"}
	}
	setDefault(&c.QEMU.Accel, "kvm")
	setDefault(&c.Launcher, LauncherColod)
	setDefault(&c.Replication.Encryption, "on")
	setDefault(&c.Ports, Ports{19000, 19999})
	setDefault(&c.Heartbeat.Port, 7788)
	setDefault(&c.Heartbeat.Interval, colo.Duration(100*time.Millisecond))
	setDefault(&c.Heartbeat.Timeout, colo.Duration(400*time.Millisecond))
	setDefault(&c.HangTimeout, colo.Duration(2*time.Second))
	setDefault(&c.Verify.Every, colo.Duration(colo.DefaultVerifyEvery))
	setDefault(&c.Verify.Limit, colo.DefaultVerifySpeed)
	setDefault(&c.Resync.Parallel, 2)
	setDefault(&c.API.Socket, filepath.Join(c.RunDir, "api.sock"))
	if c.Watchdog.Device != "" {
		setDefault(&c.Watchdog.Timeout, colo.Duration(15*time.Second))
	}
	c.Log.setDefaults()
	for i := range c.Peers {
		setDefault(&c.Peers[i].HeartbeatPort, c.Heartbeat.Port)
	}
	for _, p := range c.paths() {
		absolute(p, dir)
	}
}

// paths are all fields that name a file or folder.
func (c *Config) paths() []*string {
	out := []*string{&c.StateDir, &c.RunDir, &c.StorageDir, &c.OverlayDir, &c.Heartbeat.KeyFile, &c.API.Socket, &c.Watchdog.Device, &c.TLS.Identity, &c.TLS.Trust}
	if e := c.Arbiter.Etcd; e != nil {
		out = append(out, &e.CA, &e.Cert, &e.Key, &e.PasswordFile)
	}
	if l := c.Libvirt; l != nil {
		out = append(out, &l.Socket, &l.LogDir)
	}
	return out
}

var (
	nodeName = regexp.MustCompile(`^[a-z]([a-z0-9-]{0,29}[a-z0-9])?$`)
	linkName = regexp.MustCompile(`^[a-z][a-z0-9-]{0,15}$`)
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

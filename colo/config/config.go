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
	"os"
	"path/filepath"
	"regexp"
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

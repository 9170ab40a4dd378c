package colo

import (
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/coloctl/coloctl/blockrepl"
	"github.com/coloctl/coloctl/netcompare"
)

// Spec declares one VM. The same spec is used on every node; what differs between nodes (folders, addresses) is in [NodeConfig].
type Spec struct {
	Name       string         `yaml:"name" json:"name"`
	Memory     Size           `yaml:"memory" json:"memory"`
	VCPUs      int            `yaml:"vcpus,omitempty" json:"vcpus"`
	Machine    string         `yaml:"machine,omitempty" json:"machine"`               // QEMU machine type; pc by default
	Priority   int            `yaml:"priority,omitempty" json:"priority,omitempty"`   // of VMs that have to wait for each other the highest is first; -1000 to 1000, 0 by default
	Preferred  string         `yaml:"preferred,omitempty" json:"preferred,omitempty"` // node on which it is to run; it is moved there only when that is asked for
	Nodes      []string       `yaml:"nodes,omitempty" json:"nodes,omitempty"`         // those that may have a copy, in order of preference; any when empty
	CPU        string         `yaml:"cpu,omitempty" json:"cpu,omitempty"`             // QEMU CPU model; QEMU's default when empty
	Boot       Boot           `yaml:"boot,omitempty" json:"boot"`                     // direct kernel boot; empty boots from the first disk
	Disks      []DiskSpec     `yaml:"disks" json:"disks"`                             // mirrored on both nodes
	NICs       []NICSpec      `yaml:"nics,omitempty" json:"nics,omitempty"`           // compared
	Overlays   OverlaySpec    `yaml:"overlays,omitempty" json:"overlays,omitzero"`
	Protection ProtectionSpec `yaml:"protection,omitempty" json:"protection"`
}

// Boot is a direct kernel boot. All files must exist on both nodes.
type Boot struct {
	Kernel string `yaml:"kernel,omitempty" json:"kernel,omitempty"`
	Initrd string `yaml:"initrd,omitempty" json:"initrd,omitempty"`
	Append string `yaml:"append,omitempty" json:"append,omitempty"`
}

// DiskSpec is one disk. It is mirrored, unless it is read-only. A relative File lies in the node's storage folder.
type DiskSpec struct {
	Name   string `yaml:"name" json:"name"`
	File   string `yaml:"file" json:"file"`
	Format string `yaml:"format,omitempty" json:"format"` // raw (default) or qcow2
	Size   Size   `yaml:"size,omitempty" json:"size"`     // missing for a read-only one: it is what the image has
	// ReadOnly is an image that the guest can't write. It is there on both nodes, with the same content, and never copied.
	ReadOnly bool   `yaml:"read-only,omitempty" json:"read_only,omitempty"`
	Media    string `yaml:"media,omitempty" json:"media,omitempty"` // disk (default), or cdrom, which is read-only
}

// Media of a disk.
const (
	MediaDisk  = "disk"
	MediaCDROM = "cdrom"
)

// maxCDROMs is how many drives the machine's IDE controller takes.
const maxCDROMs = 4

// OverlaySpec says where a secondary keeps what it needs between checkpoints, and how large that may grow.
type OverlaySpec struct {
	Dir     string `yaml:"dir,omitempty" json:"dir,omitempty"`           // instead of the node's, on both nodes; the VM gets a folder in it
	MaxSize Size   `yaml:"max-size,omitempty" json:"max_size,omitempty"` // of all of them; what is larger forces a checkpoint. 0 is no limit
}

// leastOverlays is little more than what empty overlays take.
const leastOverlays = 1 << 20

// NICSpec is one network card on a bridge of the node.
type NICSpec struct {
	Name   string `yaml:"name" json:"name"`
	Bridge string `yaml:"bridge" json:"bridge"`
	MAC    string `yaml:"mac" json:"mac"`
	Model  string `yaml:"model,omitempty" json:"model"` // virtio-net-pci (default), e1000 or rtl8139
}

// ProtectionSpec tunes COLO for one VM. Zero values mean the defaults.
type ProtectionSpec struct {
	Level            string        `yaml:"level,omitempty" json:"level"`                           // protected (default) or none
	CheckpointDelay  Duration      `yaml:"checkpoint-delay,omitempty" json:"checkpoint_delay"`     // longest time between checkpoints; 300ms
	CompareTimeout   Duration      `yaml:"compare-timeout,omitempty" json:"compare_timeout"`       // how long a packet waits for its twin; 20ms
	Profile          string        `yaml:"profile,omitempty" json:"profile"`                       // latency, balanced (default) or throughput: what the times below are unless given
	Adaptive         bool          `yaml:"adaptive,omitempty" json:"adaptive"`                     // shorten the time between checkpoints while they cost little
	Comparer         string        `yaml:"comparer,omitempty" json:"comparer"`                     // stream (default) or builtin
	Compare          []CompareRule `yaml:"compare,omitempty" json:"compare,omitempty"`             // stream only: flows that are not compared; the first rule that fits decides
	ExpiredScanCycle Duration      `yaml:"expired-scan-cycle,omitempty" json:"expired_scan_cycle"` // how often waiting packets are looked at; 10ms
	MaxBandwidth     Size          `yaml:"max-bandwidth,omitempty" json:"max_bandwidth"`           // memory copy, bytes a second; 0 is no limit
	SyncSpeed        Size          `yaml:"sync-speed,omitempty" json:"sync_speed"`                 // disk copy, bytes a second; 0 is no limit
	ReplaceAfter     Duration      `yaml:"replace-after,omitempty" json:"replace_after,omitempty"` // how long its other node may be away before another candidate takes its place; 5m. Only with three nodes or more
	OnDiskError      string        `yaml:"on-disk-error,omitempty" json:"on_disk_error"`           // of the primary's own half: switchover (default) or stay
}

// Levels of protection.
const (
	LevelProtected = "protected" // a secondary on another node whenever there is one
	LevelNone      = "none"      // runs alone
)

// What follows when writes to the primary's own half of a disk fail. Its guest goes on through the peer's half in any case.
const (
	SwitchOnDiskError = "switchover" // the peer takes the VM over, without a loss
	StayOnDiskError   = "stay"       // until a person decides
)

const (
	defaultCheckpointDelay  = 300 * time.Millisecond
	defaultCompareTimeout   = 20 * time.Millisecond
	defaultReplaceAfter     = 5 * time.Minute
	defaultExpiredScanCycle = 10 * time.Millisecond
)

// InvalidSpecError says which field of a spec is wrong and what was expected there.
type InvalidSpecError struct {
	File  string // empty when the spec did not come from a file
	Field string // path of the field, e.g. $.disks[0].size
	Msg   string
	Line  int // 0 when unknown
	Col   int
}

func (e *InvalidSpecError) Error() string {
	where := e.File
	if e.Line > 0 {
		where = fmt.Sprintf("%s:%d:%d", e.File, e.Line, e.Col)
	}
	if where != "" {
		where += ": "
	}
	return fmt.Sprintf("%s%s: %s", where, strings.TrimPrefix(e.Field, "$."), e.Msg)
}

var (
	vmName     = regexp.MustCompile(`^[a-z][a-z0-9-]{0,30}$`)
	deviceName = regexp.MustCompile(`^[a-z][a-z0-9-]{0,15}$`)
	nicModels  = []string{"virtio-net-pci", "e1000", "rtl8139"}
)

func (s *Spec) setDefaults() {
	if s.VCPUs == 0 {
		s.VCPUs = 1
	}
	if s.Machine == "" {
		s.Machine = "pc"
	}
	for i := range s.Disks {
		if s.Disks[i].Format == "" {
			s.Disks[i].Format = "raw"
		}
		if s.Disks[i].Media == MediaCDROM {
			s.Disks[i].ReadOnly = true
		}
	}
	for i := range s.NICs {
		if s.NICs[i].Model == "" {
			s.NICs[i].Model = nicModels[0]
		}
	}
	p := &s.Protection
	if len(s.Nodes) > 2 {
		setDefault(&p.ReplaceAfter, Duration(defaultReplaceAfter))
	}
	setDefault(&p.Level, LevelProtected)
	setDefault(&p.OnDiskError, SwitchOnDiskError)
	setDefault(&p.Comparer, ComparerStream)
	setDefault(&p.Profile, ProfileBalanced)
	f, ok := profiles[p.Profile]
	if !ok {
		f = profiles[ProfileBalanced] // Validate says what is wrong
	}
	setDefault(&p.CheckpointDelay, Duration(f.delay))
	setDefault(&p.CompareTimeout, Duration(f.timeout))
	setDefault(&p.ExpiredScanCycle, Duration(f.scan))
}

// clone is a copy that can be changed.
func (s *Spec) clone() *Spec {
	out := *s
	out.Disks, out.NICs = slices.Clone(s.Disks), slices.Clone(s.NICs)
	return &out
}

func setDefault[T comparable](v *T, def T) {
	var zero T
	if *v == zero {
		*v = def
	}
}

// Validate fills in defaults and reports every wrong field, joined; each is an [*InvalidSpecError].
func (s *Spec) Validate() error {
	s.setDefaults()
	var errs []error
	bad := func(field, format string, args ...any) {
		errs = append(errs, &InvalidSpecError{Field: "$." + field, Msg: fmt.Sprintf(format, args...)})
	}
	if !vmName.MatchString(s.Name) {
		bad("name", "%q is not a name: expected a letter, then at most 30 lower-case letters, digits or dashes", s.Name)
	}
	if s.Memory < 1<<20 || s.Memory%(1<<20) != 0 {
		bad("memory", "%s: expected a whole number of MiB, for example 256MiB", s.Memory)
	}
	if s.VCPUs < 1 || s.VCPUs > 255 {
		bad("vcpus", "%d: expected 1 to 255", s.VCPUs)
	}
	if (s.Boot.Initrd != "" || s.Boot.Append != "") && s.Boot.Kernel == "" {
		bad("boot.kernel", "missing: initrd and append need a kernel")
	}
	if s.Priority < -1000 || s.Priority > 1000 {
		bad("priority", "%d: expected -1000 to 1000", s.Priority)
	}
	if s.Preferred != "" && !vmName.MatchString(s.Preferred) {
		bad("preferred", "%q is not the name of a node", s.Preferred)
	}
	for i, node := range s.Nodes {
		switch {
		case !vmName.MatchString(node):
			bad(fmt.Sprintf("nodes[%d]", i), "%q is not the name of a node", node)
		case slices.Contains(s.Nodes[:i], node):
			bad(fmt.Sprintf("nodes[%d]", i), "%q is named twice", node)
		}
	}
	if len(s.Nodes) == 1 {
		bad("nodes", "%v: expected two or more, or none for any", s.Nodes)
	}
	if s.Preferred != "" && len(s.Nodes) > 0 && !slices.Contains(s.Nodes, s.Preferred) {
		bad("preferred", "%q is none of its nodes %v", s.Preferred, s.Nodes)
	}
	if d := time.Duration(s.Protection.ReplaceAfter); d < 0 || d > 0 && (d < time.Second || len(s.Nodes) < 3) {
		bad("protection.replace-after", "%s: expected 1s or more, with three nodes or more", d)
	}
	if l := s.Protection.Level; l != LevelProtected && l != LevelNone {
		bad("protection.level", "%q: expected %s or %s", l, LevelProtected, LevelNone)
	}
	s.Protection.validateComparer(bad)
	if _, ok := profiles[s.Protection.Profile]; !ok {
		bad("protection.profile", "%q: expected %s, %s or %s", s.Protection.Profile, ProfileLatency, ProfileBalanced, ProfileThroughput)
	}
	if o := s.Protection.OnDiskError; o != SwitchOnDiskError && o != StayOnDiskError {
		bad("protection.on-disk-error", "%q: expected %s or %s", o, SwitchOnDiskError, StayOnDiskError)
	}
	s.validateDisks(bad)
	s.validateNICs(bad)
	if d := s.Overlays.Dir; d != "" && !filepath.IsAbs(d) {
		bad("overlays.dir", "%q: expected an absolute path", d)
	}
	if m := s.Overlays.MaxSize; m != 0 && m < leastOverlays {
		bad("overlays.max-size", "%s: expected at least %s", m, Size(leastOverlays))
	}
	for field, d := range map[string]Duration{"checkpoint-delay": s.Protection.CheckpointDelay, "compare-timeout": s.Protection.CompareTimeout,
		"expired-scan-cycle": s.Protection.ExpiredScanCycle} {
		if time.Duration(d) < time.Millisecond || time.Duration(d) > 5*time.Minute {
			bad("protection."+field, "%s: expected 1ms to 5m", time.Duration(d))
		}
	}
	return errors.Join(errs...)
}

func (s *Spec) validateDisks(bad func(string, string, ...any)) {
	if len(s.Disks) == 0 {
		bad("disks", "missing: a VM needs at least one disk")
	}
	if len(s.Disks) > 0 && len(s.mirrored()) == 0 {
		bad("disks", "a VM needs at least one disk that is not read-only")
	}
	cdroms := 0
	seen, files := map[string]bool{}, map[string]bool{}
	for i, d := range s.Disks {
		at := fmt.Sprintf("disks[%d]", i)
		if !deviceName.MatchString(d.Name) {
			bad(at+".name", "%q: expected a letter, then at most 15 lower-case letters, digits or dashes", d.Name)
		} else if seen[d.Name] {
			bad(at+".name", "%q is used twice", d.Name)
		}
		seen[d.Name] = true
		file := filepath.Clean(d.File)
		switch {
		case d.File == "":
			bad(at+".file", "missing")
		case leadsOut(d.File):
			bad(at+".file", "%q leads out of the storage folder: expected a path in it, or an absolute one", d.File)
		case files[file]:
			bad(at+".file", "%q belongs to another disk already", d.File)
		}
		files[file] = true
		if d.Format != "raw" && d.Format != "qcow2" {
			bad(at+".format", "%q: expected raw or qcow2", d.Format)
		}
		if d.Media == MediaCDROM {
			cdroms++
		}
		switch {
		case d.Media != "" && d.Media != MediaDisk && d.Media != MediaCDROM:
			bad(at+".media", "%q: expected %s or %s", d.Media, MediaDisk, MediaCDROM)
		case cdroms > maxCDROMs:
			bad(at+".media", "more than %d CD-ROMs", maxCDROMs)
		}
		if d.ReadOnly {
			if d.Size != 0 {
				bad(at+".size", "%s: leave it out, a read-only disk is as large as its image", d.Size)
			}
			continue
		}
		if d.Size < 1<<20 || d.Size%512 != 0 {
			bad(at+".size", "%s: expected at least 1MiB and a multiple of 512 bytes", d.Size)
		}
	}
}

func (s *Spec) validateNICs(bad func(string, string, ...any)) {
	seen, macs := map[string]bool{}, map[string]bool{}
	for i, n := range s.NICs {
		at := fmt.Sprintf("nics[%d]", i)
		if !deviceName.MatchString(n.Name) {
			bad(at+".name", "%q: expected a letter, then at most 15 lower-case letters, digits or dashes", n.Name)
		} else if seen[n.Name] {
			bad(at+".name", "%q is used twice", n.Name)
		}
		seen[n.Name] = true
		if n.Bridge == "" || len(n.Bridge) > 15 {
			bad(at+".bridge", "%q: expected the name of a bridge, 1 to 15 characters", n.Bridge)
		}
		hw, err := net.ParseMAC(n.MAC)
		switch {
		case err != nil || len(hw) != 6:
			bad(at+".mac", "%q: expected a MAC address, for example 52:54:00:12:34:56", n.MAC)
		case hw[0]&1 != 0:
			bad(at+".mac", "%s is a multicast address", n.MAC)
		case macs[hw.String()]:
			bad(at+".mac", "%s is used twice", n.MAC)
		default:
			macs[hw.String()] = true
		}
		if !slices.Contains(nicModels, n.Model) {
			bad(at+".model", "%q: expected one of %s", n.Model, strings.Join(nicModels, ", "))
		}
	}
}

// mirrored are the disks with a half on each node.
func (s *Spec) mirrored() []DiskSpec {
	return slices.DeleteFunc(slices.Clone(s.Disks), func(d DiskSpec) bool { return d.ReadOnly })
}

// mirroredDisk returns a mirrored disk's place in Disks.
func (s *Spec) mirroredDisk(name string) (int, error) {
	i := slices.IndexFunc(s.Disks, func(d DiskSpec) bool { return d.Name == name })
	switch {
	case i < 0:
		return i, fmt.Errorf("%s has no disk %q", s.Name, name)
	case s.Disks[i].ReadOnly:
		return i, fmt.Errorf("disk %s of %s is read-only: it has no halves that could differ", name, s.Name)
	}
	return i, nil
}

// leadsOut says whether a file that is named relative to the storage folder isn't in it.
func leadsOut(file string) bool { return !filepath.IsAbs(file) && !filepath.IsLocal(file) }

// path is where the disk's image is on a node whose storage folder is dir.
func (d DiskSpec) path(dir string) string {
	if filepath.IsAbs(d.File) {
		return d.File
	}
	return filepath.Join(dir, d.File)
}

// disks returns the spec's mirrored disks as blockrepl sees them on a node whose storage folder is dir.
func (s *Spec) disks(dir string) []blockrepl.Disk {
	var out []blockrepl.Disk
	for _, d := range s.mirrored() {
		out = append(out, blockrepl.Disk{Name: d.Name, Path: d.path(dir), Format: d.Format, Size: int64(d.Size)})
	}
	return out
}

// media returns the spec's read-only disks.
func (s *Spec) media(dir string) []blockrepl.Medium {
	var out []blockrepl.Medium
	for _, d := range s.Disks {
		if d.ReadOnly {
			out = append(out, blockrepl.Medium{Name: d.Name, Path: d.path(dir), Format: d.Format, CDROM: d.Media == MediaCDROM})
		}
	}
	return out
}

// nics returns the spec's NICs as netcompare sees them; tap names come from the node.
func (s *Spec) nics(tap func(nic string) string) []netcompare.NIC {
	out := make([]netcompare.NIC, len(s.NICs))
	for i, n := range s.NICs {
		out[i] = netcompare.NIC{Name: n.Name, MAC: n.MAC, Model: n.Model, Bridge: n.Bridge, Tap: tap(n.Name)}
	}
	return out
}

package libvirt

import (
	"cmp"
	"encoding/xml"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"libvirt.org/go/libvirtxml"

	"github.com/coloctl/coloctl/colo"
)

// Verdict says what becomes of a part of a domain's definition.
type Verdict string

const (
	Refused Verdict = "refused" // the domain can't be protected as long as it has this
	Changed Verdict = "changed" // the VM has it in another form
	Dropped Verdict = "dropped" // the VM does without it
)

// Finding is about one element of a domain's definition that the VM won't have as it is.
type Finding struct {
	Line    int     `json:"line,omitempty"` // of the definition, as virsh dumpxml --inactive prints it; 0 if it isn't about a line of that
	Element string  `json:"element"`        // such as devices/interface[1]
	Verdict Verdict `json:"verdict"`
	Text    string  `json:"text"` // what, and why
}

// Facts are what a definition doesn't tell.
type Facts struct {
	// Bridge gives the bridge of one of libvirt's networks; an error says why a VM on it can't move to another host.
	Bridge func(network string) (string, error)
	// Size gives the size of an image as the guest sees it, and refuses one that can't be mirrored.
	Size func(path, format string) (int64, error)
	// Live is the definition of the running domain, empty if it doesn't run.
	Live string
	// Snapshots and SavedState are what libvirt has put aside of the domain.
	Snapshots  int
	SavedState bool
}

// Examination is what becomes of a domain.
type Examination struct {
	Domain   string     `json:"domain"`
	Running  bool       `json:"running"`
	Spec     *colo.Spec `json:"spec,omitempty"` // without what was refused
	Findings []Finding  `json:"findings,omitempty"`
}

// Refused are the findings that stand against protection.
func (e *Examination) Refused() []Finding {
	return slices.DeleteFunc(slices.Clone(e.Findings), func(f Finding) bool { return f.Verdict != Refused })
}

// examiner collects findings.
type examiner struct {
	d     libvirtxml.Domain
	lines map[string]int
	facts Facts
	spec  colo.Spec
	out   []Finding
}

// Examine turns a domain's definition into a spec and lists, in the definition's order, all that the VM would have in another form, do without, or that
// stands against its protection. The error is about definitions that can't be read.
func Examine(definition string, f Facts) (*Examination, error) {
	e := &examiner{facts: f}
	if err := e.d.Unmarshal(definition); err != nil {
		return nil, fmt.Errorf("libvirt: the domain's definition: %w", err)
	}
	e.lines = lines(definition)
	if e.d.Devices == nil {
		e.d.Devices = &libvirtxml.DomainDeviceList{}
	}
	e.machine()
	e.cpu()
	e.disks()
	e.nics()
	e.others()
	if err := e.live(); err != nil {
		return nil, err
	}
	slices.SortStableFunc(e.out, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Element, b.Element), cmp.Compare(a.Text, b.Text))
	})
	return &Examination{Domain: e.d.Name, Running: f.Live != "", Spec: &e.spec, Findings: e.out}, nil
}

func (e *examiner) add(v Verdict, element, format string, args ...any) {
	e.out = append(e.out, Finding{Line: e.lines[element], Element: element, Verdict: v, Text: fmt.Sprintf(format, args...)})
}

// lines finds where each element of a definition begins, by its path below the domain; those of a list are numbered from 0 on.
func lines(definition string) map[string]int {
	out := map[string]int{}
	dec := xml.NewDecoder(strings.NewReader(definition))
	var path []string
	counts := []map[string]int{{}}
	for {
		line, _ := dec.InputPos()
		tok, err := dec.Token()
		if err != nil {
			return out
		}
		switch t := tok.(type) {
		case xml.StartElement:
			name := t.Name.Local
			depth := len(path)
			n := counts[depth][name]
			counts[depth][name]++
			path = append(path, name)
			counts = append(counts, map[string]int{})
			if depth == 0 {
				continue // the domain itself
			}
			at := strings.Join(path[1:], "/")
			if _, seen := out[at]; !seen {
				out[at] = line
			}
			out[fmt.Sprintf("%s[%d]", at, n)] = line
		case xml.EndElement:
			path, counts = path[:len(path)-1], counts[:len(counts)-1]
		}
	}
}

var notInName = regexp.MustCompile(`[^a-z0-9-]+`)

// vmName makes a VM's name of a domain's.
func vmName(domain string) string {
	name := strings.Trim(notInName.ReplaceAllString(strings.ToLower(domain), "-"), "-")
	if name == "" || name[0] < 'a' || name[0] > 'z' {
		name = "vm-" + name
	}
	return strings.TrimRight(name[:min(len(name), 31)], "-")
}

func (e *examiner) machine() {
	d, s := &e.d, &e.spec
	if s.Name = vmName(d.Name); s.Name != d.Name {
		e.add(Changed, "name", "the VM is called %s: names are a letter, then at most 30 small letters, digits or dashes", s.Name)
	}
	if d.Type != "kvm" && d.Type != "qemu" {
		e.add(Refused, "name", "its hypervisor is %q: only QEMU's machines, with KVM or without, can be protected", d.Type)
	}
	e.add(Changed, "uuid", "the guest sees another UUID of its system (SMBIOS): what is licensed to it may have to be activated again")
	if m := d.Memory; m != nil {
		bytes, err := inBytes(uint64(m.Value), m.Unit)
		if err != nil {
			e.add(Refused, "memory", "%v", err)
		}
		s.Memory = colo.Size((bytes + 1<<20 - 1) >> 20 << 20)
		if int64(s.Memory) != bytes {
			e.add(Changed, "memory", "rounded up to %s", s.Memory)
		}
	}
	if d.MaximumMemory != nil {
		e.add(Dropped, "maxMemory", "memory can't be plugged in while a VM is protected")
	}
	if b := d.MemoryBacking; b != nil {
		switch {
		case b.MemoryAccess != nil && b.MemoryAccess.Mode == "shared":
			e.add(Refused, "memoryBacking", "memory is shared with other processes, whose writes no checkpoint would have")
		default:
			e.add(Dropped, "memoryBacking", "the VM's memory is ordinary memory")
		}
	}
	s.VCPUs = 1
	if v := d.VCPU; v != nil {
		s.VCPUs = int(v.Value)
		if v.Current != 0 && v.Current != v.Value {
			s.VCPUs = int(v.Current)
			e.add(Changed, "vcpu", "fixed at %d of %d: vCPUs can't be plugged in while a VM is protected", v.Current, v.Value)
		}
	}
	if d.OS != nil {
		e.os()
	}
	for name, present := range map[string]bool{
		"cputune": d.CPUTune != nil, "numatune": d.NUMATune != nil, "blkiotune": d.BlockIOTune != nil, "memtune": d.MemoryTune != nil, "iothreads": d.IOThreads > 0,
		"resource": d.Resource != nil,
	} {
		if present {
			e.add(Dropped, name, "limits and pinning are not part of a VM's spec; set them on both hosts, with virsh or systemd, where they are needed")
		}
	}
	if len(d.SysInfo) > 0 {
		e.add(Dropped, "sysinfo", "the guest doesn't see these texts")
	}
	if d.LaunchSecurity != nil {
		e.add(Refused, "launchSecurity", "the guest's memory is encrypted: it can't be copied to another host")
	}
	if d.QEMUCommandline != nil && len(d.QEMUCommandline.Args) > 0 {
		e.add(Refused, "commandline", "arguments that are passed by to QEMU (%s) can do anything", joinArgs(d.QEMUCommandline.Args))
	}
}

func joinArgs(args []libvirtxml.DomainQEMUCommandlineArg) string {
	var out []string
	for _, a := range args {
		out = append(out, a.Value)
	}
	return strings.Join(out, " ")
}

func (e *examiner) os() {
	o, s := e.d.OS, &e.spec
	if t := o.Type; t != nil {
		if t.Arch != "" && t.Arch != "x86_64" {
			e.add(Refused, "os/type", "its processor is %s: only x86_64 can be protected", t.Arch)
		}
		s.Machine = t.Machine
	}
	if o.Firmware == "efi" || o.Loader != nil || o.NVRam != nil {
		at := "os/loader"
		if e.lines[at] == 0 {
			at = "os"
		}
		e.add(Refused, at, "UEFI: what the firmware writes to its variables (nvram) would not be on the other host; only BIOS can be protected")
	}
	s.Boot = colo.Boot{Kernel: o.Kernel, Initrd: o.Initrd, Append: o.Cmdline}
	if o.Kernel != "" {
		e.add(Changed, "os/kernel", "the kernel (and initrd) must be on both hosts at the same path")
	}
	if o.BootMenu != nil && o.BootMenu.Enable == "yes" {
		e.add(Dropped, "os/bootmenu", "there is no screen for it")
	}
	for i, b := range o.BootDevices {
		if b.Dev != "hd" {
			e.add(Dropped, fmt.Sprintf("os/boot[%d]", i), "the VM starts from its first disk, not from %q", b.Dev)
		}
	}
}

func (e *examiner) cpu() {
	c := e.d.CPU
	if c == nil {
		return
	}
	s := &e.spec
	switch c.Mode {
	case "host-passthrough":
		s.CPU = "host"
		e.add(Changed, "cpu", "the guest sees the host's processor: both hosts must have the same one")
	case "host-model":
		s.CPU = "host"
		e.add(Changed, "cpu", "host-model becomes the host's own processor (host): both hosts must have the same one")
	case "maximum":
		s.CPU = "max"
	default:
		if c.Model != nil {
			s.CPU = c.Model.Value
		}
		for _, f := range c.Features {
			switch f.Policy {
			case "require", "force":
				s.CPU += ",+" + f.Name
			case "disable":
				s.CPU += ",-" + f.Name
			}
		}
	}
	if c.Numa != nil {
		e.add(Dropped, "cpu/numa", "the guest sees one NUMA node")
	}
	if c.Topology != nil {
		e.add(Changed, "cpu/topology", "each vCPU is a socket of its own")
	}
}

// inBytes reads one of libvirt's sizes.
func inBytes(n uint64, unit string) (int64, error) {
	factor := map[string]uint64{
		"": 1 << 10, "b": 1, "bytes": 1, "k": 1 << 10, "KiB": 1 << 10, "KB": 1e3, "M": 1 << 20, "MiB": 1 << 20, "MB": 1e6, "G": 1 << 30, "GiB": 1 << 30, "GB": 1e9,
		"T": 1 << 40, "TiB": 1 << 40, "TB": 1e12,
	}[unit]
	if factor == 0 || n > 1<<62/factor {
		return 0, fmt.Errorf("%d %s is no size", n, unit)
	}
	return int64(n * factor), nil
}

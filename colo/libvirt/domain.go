package libvirt

import (
	"crypto/sha1" //nolint:gosec // a name-based UUID is made with it (RFC 9562)
	"encoding/xml"
	"fmt"
	"strings"

	"libvirt.org/go/libvirtxml"

	"github.com/coloctl/coloctl/colo"
)

// markNS is the namespace of the element in a domain's metadata that makes it one of ours.
const markNS = "https://github.com/coloctl/coloctl/domain/1"

// mark is that element.
type mark struct {
	XMLName xml.Name `xml:"https://github.com/coloctl/coloctl/domain/1 copy"`
	VM      string   `xml:"vm,attr"`
	ID      string   `xml:"id,attr"`
}

// domainUUID is the same on both nodes and for ever: the guest sees it.
func domainUUID(id string) string {
	h := sha1.New() //nolint:gosec // see above
	fmt.Fprintf(h, "%s\x00%s", markNS, id)
	u := h.Sum(nil)[:16]
	u[6] = u[6]&0x0f | 0x50
	u[8] = u[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:])
}

// virtType is libvirt's word for an accelerator.
func virtType(accel string) string {
	if accel == "kvm" {
		return "kvm"
	}
	return "qemu"
}

// domainXML is the definition of a copy. It doesn't depend on the node or the role but for r.Args and r.Serial, so that both copies are the same machine.
func domainXML(r colo.StartRequest) (string, error) {
	s := r.Spec
	m, err := xml.Marshal(mark{VM: s.Name, ID: r.ID})
	if err != nil {
		return "", err
	}
	zero := uint(0)
	d := libvirtxml.Domain{
		Type:        virtType(r.Accel),
		Name:        s.Name,
		UUID:        domainUUID(r.ID),
		Title:       "Copy of the protected VM " + s.Name,
		Description: "Started by colod. Use coloctl to start, stop and move it; virsh for its console and its figures.",
		Metadata:    &libvirtxml.DomainMetadata{XML: string(m)},
		Memory:      &libvirtxml.DomainMemory{Value: uint(s.Memory >> 20), Unit: "MiB"},
		VCPU:        &libvirtxml.DomainVCPU{Value: uint(s.VCPUs)},
		OS:          &libvirtxml.DomainOS{Type: &libvirtxml.DomainOSType{Arch: "x86_64", Machine: s.Machine, Type: "hvm"}, Kernel: s.Boot.Kernel, Initrd: s.Boot.Initrd, Cmdline: s.Boot.Append},
		// Without these libvirt would pass options that newer QEMUs don't know.
		Features: &libvirtxml.DomainFeatureList{ACPI: &libvirtxml.DomainFeature{}, APIC: &libvirtxml.DomainFeatureAPIC{}},
		// libvirt has no way to leave a guest that is off alone; the launcher knows, see colo.Starter.
		OnPoweroff: "destroy", OnReboot: "restart", OnCrash: "destroy",
		Devices: &libvirtxml.DomainDeviceList{
			Emulator:    r.QEMU,
			Controllers: []libvirtxml.DomainController{{Type: "usb", Model: "none"}},
			// A balloon would be one more device that changes the guest's memory behind COLO's back.
			MemBalloon: &libvirtxml.DomainMemBalloon{Model: "none"},
			Serials: []libvirtxml.DomainSerial{{
				Source: &libvirtxml.DomainChardevSource{Pty: &libvirtxml.DomainChardevSourcePty{}},
				Target: &libvirtxml.DomainSerialTarget{Port: &zero},
				Log:    &libvirtxml.DomainChardevLog{File: r.Serial, Append: "off"},
			}},
		},
		QEMUCommandline: &libvirtxml.DomainQEMUCommandline{},
	}
	args := r.Args
	switch s.CPU {
	case "":
	case "host":
		d.CPU = &libvirtxml.DomainCPU{Mode: "host-passthrough"}
	default: // libvirt knows fewer models than QEMU; of two options the last counts
		args = append([]string{"-cpu", s.CPU}, args...)
	}
	for _, a := range args {
		if strings.ContainsFunc(a, func(r rune) bool { return r < ' ' && r != '\t' }) {
			return "", fmt.Errorf("libvirt: %q can't be passed to QEMU", a)
		}
		d.QEMUCommandline.Args = append(d.QEMUCommandline.Args, libvirtxml.DomainQEMUCommandlineArg{Value: a})
	}
	return d.Marshal()
}

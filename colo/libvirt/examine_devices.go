package libvirt

import (
	"fmt"

	"libvirt.org/go/libvirtxml"

	"github.com/coloctl/coloctl/colo"
)

func (e *examiner) disks() {
	for i := range e.d.Devices.Disks {
		d, at := &e.d.Devices.Disks[i], fmt.Sprintf("devices/disk[%d]", i)
		target, bus := "", ""
		if d.Target != nil {
			target, bus = d.Target.Dev, d.Target.Bus
		}
		if d.Device != "" && d.Device != "disk" {
			switch {
			case d.Device == "lun":
				e.add(Refused, at, "%s: commands go through to the host's own device", target)
			case d.Source == nil:
				e.add(Dropped, at, "%s: the drive is empty; a VM has no %s", target, d.Device)
			default:
				e.add(Dropped, at, "%s: a VM has no %s: take the medium out first if the guest needs it to start", target, d.Device)
			}
			continue
		}
		if refusal := e.disk(d, at, target, bus); refusal != "" {
			e.add(Refused, at, "%s: %s", target, refusal)
		}
	}
	if len(e.spec.Disks) == 0 && len(e.d.Devices.Disks) == 0 {
		e.add(Refused, "devices", "it has no disk")
	}
}

// disk adds one disk to the spec, or says why not.
func (e *examiner) disk(d *libvirtxml.DomainDisk, at, target, bus string) string {
	format := "raw"
	if d.Driver != nil && d.Driver.Type != "" {
		format = d.Driver.Type
	}
	switch {
	case d.Shareable != nil:
		return "it is shared with other machines, whose writes the mirror would not see"
	case d.ReadOnly != nil:
		return "it is read-only: the mirror has to write it on the other host; put what is in it on an ordinary disk"
	case d.Transient != nil:
		return "its changes are thrown away (transient)"
	case d.Encryption != nil:
		return "libvirt decrypts it; use encryption inside the guest, or below the image"
	case d.Source == nil:
		return "it has no source"
	case d.Source.File == nil:
		return fmt.Sprintf("its source is %s: only image files can be mirrored yet", sourceKind(d.Source))
	case d.Source.Reservations != nil:
		return "persistent reservations share it with other machines"
	case format != "raw" && format != "qcow2":
		return fmt.Sprintf("its format is %s: only raw and qcow2 can be mirrored", format)
	case bus != "virtio":
		return fmt.Sprintf("the guest sees it on the bus %q; a VM's disks are virtio: let the guest load virtio_blk at boot, and change the bus", bus)
	case d.BackingStore != nil && d.BackingStore.Format != nil:
		return "it lies on top of another image (a backing chain, as snapshots leave it): flatten it with virsh blockpull, or qemu-img convert"
	}
	size, err := e.facts.Size(d.Source.File.File, format)
	if err != nil {
		return err.Error()
	}
	e.spec.Disks = append(e.spec.Disks, colo.DiskSpec{Name: target, File: d.Source.File.File, Format: format, Size: colo.Size(size)})
	e.add(Changed, at, "%s: its place on the PCI bus changes; the other host gets its image at the same path, %s", target, d.Source.File.File)
	if d.IOTune != nil {
		e.add(Dropped, at, "%s: its limits (iotune) are not part of a spec", target)
	}
	if d.Serial != "" {
		e.add(Dropped, at, "%s: its serial number; /dev/disk/by-id in the guest changes", target)
	}
	return ""
}

func sourceKind(s *libvirtxml.DomainDiskSource) string {
	switch {
	case s.Block != nil:
		return "the block device " + s.Block.Dev
	case s.Network != nil:
		return "on the network (" + s.Network.Protocol + ")"
	case s.Volume != nil:
		return "a volume of the pool " + s.Volume.Pool + " (name its file instead)"
	case s.VHostUser != nil, s.VHostVDPA != nil:
		return "another process (vhost)"
	case s.Dir != nil:
		return "a folder"
	case s.NVME != nil:
		return "a device of the host's (NVMe)"
	}
	return "unknown"
}

var nicModels = map[string]string{"virtio": "virtio-net-pci", "virtio-net-pci": "virtio-net-pci", "e1000": "e1000", "rtl8139": "rtl8139", "": "rtl8139"}

func (e *examiner) nics() {
	for i := range e.d.Devices.Interfaces {
		n, at := &e.d.Devices.Interfaces[i], fmt.Sprintf("devices/interface[%d]", i)
		if refusal := e.nic(n, at); refusal != "" {
			e.add(Refused, at, "%s", refusal)
		}
	}
}

// nic adds one NIC to the spec, or says why not.
func (e *examiner) nic(n *libvirtxml.DomainInterface, at string) string {
	model := ""
	if n.Model != nil {
		model = n.Model.Type
	}
	known, ok := nicModels[model]
	switch {
	case !ok:
		return fmt.Sprintf("the model %q: the comparing of network output is known to work with virtio, e1000 and rtl8139", model)
	case n.MAC == nil || n.MAC.Address == "":
		return "it has no MAC address: libvirt would make one at each start"
	case n.Source == nil:
		return "it is connected to nothing"
	case n.VirtualPort != nil:
		return "a port of a virtual switch (virtualport), which a VM's tap can't be; use an ordinary bridge"
	case n.VLan != nil:
		return "a VLAN tag is put on it by libvirt; make a bridge in that VLAN"
	}
	bridge, refusal := e.bridge(n.Source)
	if refusal != "" {
		return refusal
	}
	e.spec.NICs = append(e.spec.NICs, colo.NICSpec{Name: fmt.Sprintf("net%d", len(e.spec.NICs)), Bridge: bridge, MAC: n.MAC.Address, Model: known})
	e.add(Changed, at, "its place on the PCI bus changes: a guest that names it by that (ens3) gives it another name; the other host needs the bridge %s too", bridge)
	if d := n.Driver; d != nil && d.Queues > 1 {
		e.add(Changed, at, "multiqueue (%d): one queue, because the others would bypass the comparing", d.Queues)
	}
	if d := n.Driver; known == "virtio-net-pci" && (d == nil || d.Name != "qemu") {
		e.add(Changed, at, "vhost: off, because the kernel would send past the comparing; throughput is lower than before")
	}
	if n.FilterRef != nil {
		e.add(Dropped, at, "libvirt's packet filter %s: filter on the bridge, on both hosts", n.FilterRef.Filter)
	}
	if n.Bandwidth != nil || n.Tune != nil {
		e.add(Dropped, at, "its limits are not part of a spec")
	}
	if n.MTU != nil {
		e.add(Dropped, at, "its MTU: the guest takes that of its own configuration")
	}
	return ""
}

func (e *examiner) bridge(s *libvirtxml.DomainInterfaceSource) (name, refusal string) {
	switch {
	case s.Bridge != nil:
		return s.Bridge.Bridge, ""
	case s.Network != nil:
		b, err := e.facts.Bridge(s.Network.Network)
		if err != nil {
			return "", err.Error()
		}
		return b, ""
	case s.Direct != nil:
		return "", fmt.Sprintf("macvtap on %s: nothing can be compared or cut there; use a bridge", s.Direct.Dev)
	case s.Hostdev != nil, s.VDPA != nil:
		return "", "a device of the host's: its output can't be compared, and its state can't be copied"
	case s.VHostUser != nil:
		return "", "vhost-user: another process sends past QEMU, and nothing can be compared"
	case s.User != nil:
		return "", "the host's own network (user): connections would end with the host; use a bridge"
	}
	return "", "what it is connected to isn't a bridge"
}

func (e *examiner) others() {
	d := e.d.Devices
	each := func(name string, n int, v Verdict, text string) {
		for i := range n {
			e.add(v, fmt.Sprintf("devices/%s[%d]", name, i), "%s", text)
		}
	}
	each("hostdev", len(d.Hostdevs), Refused, "a device of the host's (vfio, USB, SCSI): its state can't be copied to another host")
	each("filesystem", len(d.Filesystems), Refused, "a folder of the host's (virtiofs, 9p): it isn't on the other host, and its server's state can't be copied")
	each("tpm", len(d.TPMs), Refused, "a TPM: its secrets are kept by another process of this host's, and no checkpoint has them")
	each("shmem", len(d.Shmems), Refused, "memory shared with other processes, whose writes no checkpoint would have")
	each("redirdev", len(d.RedirDevs), Refused, "a USB device of a viewer's: its state can't be copied")
	each("smartcard", len(d.Smartcards), Refused, "a smart card of the host's or a viewer's: its state can't be copied")
	each("memory", len(d.Memorydevs), Refused, "a memory device (DIMM, NVDIMM, virtio-mem): memory can't be plugged while a VM is protected")
	each("iommu", len(d.IOMMUs), Refused, "an IOMMU: it is for devices of the host's, and checkpoints with it are unknown")
	each("crypto", len(d.Crypto), Refused, "a crypto device is served by the host: its state can't be copied")
	if d.VSock != nil {
		each("vsock", 1, Refused, "vsock leads to this host's processes (vhost), past the comparing")
	}
	if d.PStore != nil {
		each("pstore", 1, Refused, "its file isn't on the other host")
	}
	if d.NVRAM != nil {
		each("nvram", 1, Refused, "its file isn't on the other host")
	}
	each("graphics", len(d.Graphics), Dropped, "a VM has no screen; its console is the serial port")
	each("video", len(d.Videos), Dropped, "a VM has no screen")
	each("sound", len(d.Sounds), Dropped, "a VM has no sound")
	each("channel", len(d.Channels), Dropped, "channels (the guest agent, spice) end in processes of one host: a guest agent won't be reached")
	each("parallel", len(d.Parallels), Dropped, "a VM has no parallel port")
	each("rng", len(d.RNGs), Dropped, "random numbers from the host would differ on both hosts; the guest has its processor's")
	each("watchdog", len(d.Watchdogs), Dropped, "a VM has no watchdog; colod watches QEMU, not the guest")
	each("panic", len(d.Panics), Dropped, "a VM has no panic device")
	if d.MemBalloon != nil && d.MemBalloon.Model != "none" {
		each("memballoon", 1, Dropped, "a balloon would change the guest's memory behind the checkpoints")
	}
	if len(d.Serials) > 1 {
		e.add(Dropped, "devices/serial[1]", "a VM has one serial port")
	}
	for i, in := range d.Inputs {
		if in.Bus != "ps2" {
			e.add(Dropped, fmt.Sprintf("devices/input[%d]", i), "a VM has no USB and no screen to point at")
		}
	}
	for i, c := range d.Controllers {
		switch {
		case c.Type == "scsi", c.Type == "virtio-serial", c.Type == "usb" && c.Model != "none":
			e.add(Dropped, fmt.Sprintf("devices/controller[%d]", i), "nothing is left that needs a %s controller", c.Type)
		}
	}
	if n := e.facts.Snapshots; n > 0 {
		e.add(Refused, "snapshots", "libvirt has %d snapshots of it, which would no longer be true: delete them (virsh snapshot-list %s)", n, e.d.Name)
	}
	if e.facts.SavedState {
		e.add(Refused, "managed save", "libvirt has saved its memory, which the VM would start without: virsh start %s, and shut it down from inside", e.d.Name)
	}
}

// live finds what a running domain has and its definition hasn't: that was plugged in, and would be missing.
func (e *examiner) live() error {
	if e.facts.Live == "" {
		return nil
	}
	var now libvirtxml.Domain
	if err := now.Unmarshal(e.facts.Live); err != nil {
		return fmt.Errorf("libvirt: the running domain's definition: %w", err)
	}
	if now.Devices == nil {
		return nil
	}
	defined := map[string]bool{}
	for _, k := range deviceKeys(e.d.Devices) {
		defined[k] = true
	}
	for _, k := range deviceKeys(now.Devices) {
		if !defined[k] {
			e.add(Refused, "hot-plugged", "%s was plugged in while the domain ran, and isn't in its definition: unplug it, or add it to the definition (virsh edit %s)", k, e.d.Name)
		}
	}
	for _, d := range now.Devices.Disks {
		if d.Mirror != nil {
			e.add(Refused, "block job", "a block job runs on %s: let it end, or abort it (virsh blockjob)", d.Target.Dev)
		}
		if d.BackingStore != nil && d.BackingStore.Format != nil && d.Source != nil && d.Source.File != nil {
			e.add(Refused, "snapshot", "%s lies on top of another image (a snapshot's): merge it with virsh blockcommit or blockpull", d.Target.Dev)
		}
	}
	return nil
}

// deviceKeys names devices by what identifies them for a person.
func deviceKeys(d *libvirtxml.DomainDeviceList) []string {
	var out []string
	for _, x := range d.Disks {
		if x.Target != nil {
			out = append(out, "disk "+x.Target.Dev)
		}
	}
	for _, x := range d.Interfaces {
		if x.MAC != nil {
			out = append(out, "interface "+x.MAC.Address)
		}
	}
	for name, n := range map[string]int{"hostdev": len(d.Hostdevs), "filesystem": len(d.Filesystems), "memory device": len(d.Memorydevs), "tpm": len(d.TPMs), "shmem": len(d.Shmems),
		"redirdev": len(d.RedirDevs), "rng": len(d.RNGs), "watchdog": len(d.Watchdogs)} {
		for i := range n {
			out = append(out, fmt.Sprintf("%s %d", name, i+1))
		}
	}
	return out
}

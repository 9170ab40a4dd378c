package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/urfave/cli/v2"
	"github.com/vishvananda/netlink"

	"github.com/coloctl/coloctl/internal/setup"
)

const siteFile = "site.yaml"

// askSite asks a person what the site is, proposing what this host shows, and writes the answers to site.yaml.
func askSite(cc *cli.Context) (string, error) {
	if _, err := os.Stat(siteFile); err == nil {
		return "", &taskError{"", fmt.Errorf("%s %w", siteFile, errExists), "go on with it: coloctl setup -f " + siteFile}
	}
	if !isTerminal(cc.App.Reader) {
		return "", usagef("setup asks questions, and there is no terminal: give -f FILE")
	}
	in := bufio.NewReader(cc.App.Reader)
	var failed error
	ask := func(question, proposal string) string {
		if failed != nil {
			return proposal
		}
		if proposal != "" {
			question += " [" + proposal + "]"
		}
		fmt.Fprintf(cc.App.ErrWriter, "%s: ", question)
		line, err := in.ReadString('\n')
		if err != nil && !errors.Is(err, io.EOF) || line == "" {
			failed = errors.Join(err, errDeclined)
		}
		if line = strings.TrimSpace(line); line == "" {
			return proposal
		}
		return line
	}
	own, _ := os.Hostname()
	own, _, _ = strings.Cut(strings.ToLower(own), ".")
	host, links, bridges := proposals()
	accel := "kvm"
	if _, err := os.Stat("/dev/kvm"); err != nil {
		accel = "tcg"
	}
	s := &setup.Site{Accel: accel}
	one := setup.Node{Name: ask("Name of this node", own)}
	one.Host = ask("Address at which the others reach it", host)
	one.Links = strings.Fields(ask("Its addresses on replication networks, best on cables of their own", strings.Join(links, " ")))
	two := setup.Node{Name: ask("Name of the other node", "")}
	two.Host = ask("Its address", "")
	two.Links = strings.Fields(ask("Its addresses on the same replication networks, in the same order", ""))
	two.SSH = ask("How ssh reaches it, for example root@"+two.Host+"; empty: you bring its bundle there", "")
	s.Nodes = []setup.Node{one, two}
	s.Bridges = strings.Fields(ask("Bridges for VMs, the same on both", strings.Join(bridges, " ")))
	if w := ask("Address of a witness on a third machine, as host:port; none: there is none", "none"); w == "none" {
		s.Arbiter = "none"
	} else {
		if _, _, err := net.SplitHostPort(w); err != nil {
			w = net.JoinHostPort(w, "7790")
		}
		s.Witness = &setup.Witness{Address: w, Name: ask("Name of the witness", "w1"), SSH: ask("How ssh reaches it; empty: you bring its bundle there", "")}
	}
	s.Accel = ask("Accelerator, kvm or tcg", accel)
	s.VM = ask("File with the spec of the first VM; empty: none now", "")
	if failed != nil {
		return "", failed
	}
	text, err := yaml.Marshal(s)
	if err != nil {
		return "", err
	}
	if _, err := setup.ParseSite(text, siteFile); err != nil {
		return "", err
	}
	file, err := filepath.Abs(siteFile)
	if err != nil {
		return "", err
	}
	fmt.Fprintf(cc.App.ErrWriter, "\n%s\n", text)
	if cc.Bool("dry-run") {
		return "", &taskError{"", errors.New("nothing was written: it is a dry run"), "save the lines above as " + siteFile + ", then: coloctl setup -f " + siteFile + " --dry-run"}
	}
	if err := os.WriteFile(file, text, 0o644); err != nil { //nolint:gosec // no secret is in it
		return "", err
	}
	fmt.Fprintf(cc.App.ErrWriter, "written to %s\n", file)
	return file, nil
}

// proposals are what this host shows: the address of its default route, its other addresses, and its bridges.
func proposals() (host string, links, bridges []string) {
	defaultLink := -1
	routes, _ := netlink.RouteList(nil, netlink.FAMILY_V4)
	for _, r := range routes {
		if r.Dst == nil || r.Dst.IP.IsUnspecified() {
			defaultLink = r.LinkIndex
		}
	}
	all, _ := netlink.LinkList()
	for _, l := range all {
		if l.Type() == "bridge" {
			bridges = append(bridges, l.Attrs().Name)
		}
		addrs, _ := netlink.AddrList(l, netlink.FAMILY_V4)
		for _, a := range addrs {
			switch {
			case a.IP.IsLoopback():
			case l.Attrs().Index == defaultLink || l.Type() == "bridge" && host == "":
				host = a.IP.String()
			case l.Type() != "bridge":
				links = append(links, a.IP.String())
			}
		}
	}
	return host, links, bridges
}

package netcompare

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
)

// linked makes two hosts with one link and IPv4 and IPv6 addresses on it.
func linked(t *testing.T) (a, b Host) {
	t.Helper()
	a, b = newHost(t), newHost(t)
	connect(t, a, "link", b, "link")
	a.addr(t, "link", "10.90.0.1/24")
	b.addr(t, "link", "10.90.0.2/24")
	a.addr(t, "link", "fd90::1/64")
	b.addr(t, "link", "fd90::2/64")
	return a, b
}

// routes are all but the kernel's routes to the host's own addresses, which follow the addresses with a delay.
func (h Host) routes(t *testing.T) string {
	t.Helper()
	all := h.ip(t, "-4", "route", "show", "table", "all") + h.ip(t, "-6", "route", "show", "table", "all")
	var l []string
	for line := range strings.Lines(all) {
		if !strings.Contains(line, " table local ") {
			l = append(l, line)
		}
	}
	return strings.Join(l, "")
}

func TestQuickAck(t *testing.T) {
	a, b := linked(t)
	a.ip(t, "route", "add", "10.91.0.0/16", "via", "10.90.0.2", "mtu", "1300", "metric", "50")
	b.addr(t, "link", "10.91.0.2/32")
	a.ip(t, "-6", "route", "add", "fd91::/64", "via", "fd90::2")
	a.addr(t, "link", "fe80::1/64")
	b.addr(t, "link", "fe80::2/64")

	for peer, want := range map[string][]string{
		"10.90.0.2":        {"10.90.0.2 dev link", "src 10.90.0.1"},
		"::ffff:10.90.0.2": {"10.90.0.2 dev link", "src 10.90.0.1"},
		"10.91.0.2":        {"10.91.0.2 via 10.90.0.2 dev link", "src 10.90.0.1", "mtu 1300"},
		"fd90::2":          {"fd90::2 from :: dev link", "src fd90::1"},
		"fd91::2":          {"fd91::2 from :: via fd90::2 dev link"},
		"fe80::2%link":     {"fe80::2 from :: dev link"},
	} {
		t.Run(peer, func(t *testing.T) {
			ctx, addr := t.Context(), netip.MustParseAddr(peer)
			before := a.routes(t)
			if strings.Contains(before, "quickack") {
				t.Fatal("there are quickack routes already:\n", before)
			}
			for range 2 {
				if err := a.QuickAck(ctx, addr); err != nil {
					t.Fatal(err)
				}
				got := a.ip(t, "route", "get", addr.WithZone("").Unmap().String(), "oif", "link")
				for _, w := range append(want, "quickack 1") {
					if !strings.Contains(got, w) {
						t.Errorf("the route lacks %q: %s", w, got)
					}
				}
				if list, err := a.QuickAcks(ctx); err != nil || len(list) != 1 || list[0] != addr.WithZone("").Unmap() {
					t.Errorf("routes listed: %v, %v", list, err)
				}
			}
			for range 2 {
				if err := a.ClearQuickAck(ctx, addr); err != nil {
					t.Fatal(err)
				}
			}
			if after := a.routes(t); after != before {
				t.Errorf("routes before:\n%s\nafter:\n%s", before, after)
			}
		})
	}
}

func TestQuickAckLeavesTheAdministratorsRoutes(t *testing.T) {
	a, _ := linked(t)
	ctx, peer := t.Context(), netip.MustParseAddr("10.90.0.2")

	a.ip(t, "route", "add", "10.90.0.2/32", "dev", "link")
	before := a.routes(t)
	if err := a.QuickAck(ctx, peer); !errors.Is(err, ErrForeignRoute) {
		t.Errorf("got %v, want ErrForeignRoute", err)
	}
	a.ip(t, "route", "change", "10.90.0.2/32", "dev", "link", "quickack", "1")
	changed := a.routes(t)
	if err := a.QuickAck(ctx, peer); err != nil {
		t.Errorf("the administrator's own quickack route: %v", err)
	}
	if err := a.ClearQuickAck(ctx, peer); err != nil {
		t.Error(err)
	}
	if after := a.routes(t); after != changed || changed == before {
		t.Errorf("routes before:\n%s\nafter:\n%s", changed, after)
	}
}

// Where the administrator has rules, ours goes into the table that they lead to.
func TestQuickAckWithRules(t *testing.T) {
	a, _ := linked(t)
	peer := netip.MustParseAddr("10.90.0.2")
	a.ip(t, "route", "add", "10.90.0.0/24", "dev", "link", "table", "100")
	a.ip(t, "rule", "add", "to", "10.90.0.0/24", "lookup", "100")
	before := a.routes(t)
	if err := a.QuickAck(t.Context(), peer); err != nil {
		t.Fatal(err)
	}
	if got := a.ip(t, "route", "get", "10.90.0.2"); !strings.Contains(got, "quickack 1") || !strings.Contains(got, "table 100") {
		t.Errorf("not in the rule's table: %s", got)
	}
	if err := a.ClearQuickAck(t.Context(), peer); err != nil {
		t.Fatal(err)
	}
	if after := a.routes(t); after != before {
		t.Errorf("routes before:\n%s\nafter:\n%s", before, after)
	}
}

func TestQuickAckNoRoute(t *testing.T) {
	a, _ := linked(t)
	for _, peer := range []string{"192.0.2.1", "10.90.0.1", "127.0.0.1", "10.90.0.255", "fd99::1", "fe80::1%nowhere"} {
		if err := a.QuickAck(t.Context(), netip.MustParseAddr(peer)); !errors.Is(err, ErrNoRoute) {
			t.Errorf("%s: %v, want ErrNoRoute", peer, err)
		}
	}
	if list, err := a.QuickAcks(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("routes left: %v, %v", list, err)
	}
}

// Package api holds the exported names of the library's packages, a line each, so that a break for callers is seen in a change's diff and never by accident.
// The files are written by: go test ./api -update
package api

import (
	"bytes"
	"flag"
	"go/ast"
	"go/parser"
	"go/printer"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the files")

// packages are those that others may import.
var packages = []string{"qmp", "blockrepl", "netcompare", "state", "colo", "colo/arbiter", "colo/arbiter/witness", "colo/api", "colo/api/pki", "colo/config", "colo/heartbeat", "colo/libvirt"}

func TestAPI(t *testing.T) {
	for _, p := range packages {
		file := strings.ReplaceAll(p, "/", "-") + ".txt"
		got := exported(t, filepath.Join("..", filepath.FromSlash(p)))
		if *update {
			if err := os.WriteFile(file, []byte(strings.Join(got, "\n")+"\n"), 0o644); err != nil {
				t.Fatal(err)
			}
			continue
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		want := strings.Split(strings.TrimSpace(string(text)), "\n")
		for _, line := range want {
			if !slices.Contains(got, line) {
				t.Errorf("%s: gone or changed, which breaks who uses it: %s", p, line)
			}
		}
		for _, line := range got {
			if !slices.Contains(want, line) {
				t.Logf("%s: new, to be noted by go test ./api -update: %s", p, line) // breaks nobody
			}
		}
	}
	if t.Failed() {
		t.Log("if it is meant: go test ./api -update, and a line in CHANGELOG.md")
	}
}

// exported lists what a package offers, sorted.
func exported(t *testing.T, dir string) []string {
	t.Helper()
	set := token.NewFileSet()
	names, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	say := func(node any, words ...string) {
		var b bytes.Buffer
		if node != nil {
			if err := (&printer.Config{Mode: printer.RawFormat}).Fprint(&b, set, node); err != nil {
				t.Fatal(err)
			}
		}
		out = append(out, strings.Join(strings.Fields(strings.Join(append(words, b.String()), " ")), " "))
	}
	for _, n := range names {
		if strings.HasSuffix(n, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(set, n, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range f.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				switch recv := receiver(d); {
				case !d.Name.IsExported():
				case d.Recv == nil:
					say(d.Type, "func", d.Name.Name)
				case ast.IsExported(strings.TrimPrefix(recv, "*")):
					say(d.Type, "method", "("+recv+")", d.Name.Name)
				}
			case *ast.GenDecl:
				generic(d, say)
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func receiver(d *ast.FuncDecl) string {
	if d.Recv == nil {
		return ""
	}
	star, typ := "", d.Recv.List[0].Type
	if s, ok := typ.(*ast.StarExpr); ok {
		star, typ = "*", s.X
	}
	if i, ok := typ.(*ast.IndexExpr); ok {
		typ = i.X
	}
	id, ok := typ.(*ast.Ident)
	if !ok {
		return ""
	}
	return star + id.Name
}

func generic(d *ast.GenDecl, say func(node any, words ...string)) {
	for _, s := range d.Specs {
		switch s := s.(type) {
		case *ast.ValueSpec: // values of constants may change, their names and types not
			for _, n := range s.Names {
				if n.IsExported() {
					say(expr(s.Type), d.Tok.String(), n.Name)
				}
			}
		case *ast.TypeSpec:
			if !s.Name.IsExported() {
				continue
			}
			switch typ := s.Type.(type) {
			case *ast.StructType:
				say(nil, "type", s.Name.Name, "struct")
				for _, f := range typ.Fields.List {
					for _, n := range f.Names {
						if n.IsExported() {
							say(f.Type, "field", s.Name.Name+"."+n.Name)
						}
					}
					if len(f.Names) == 0 {
						say(f.Type, "embedded", s.Name.Name)
					}
				}
			case *ast.InterfaceType:
				say(nil, "type", s.Name.Name, "interface")
				for _, m := range typ.Methods.List {
					if len(m.Names) == 0 {
						say(m.Type, "embedded", s.Name.Name)
					}
					for _, n := range m.Names {
						say(m.Type, "method", s.Name.Name+"."+n.Name)
					}
				}
			default:
				say(s.Type, "type", s.Name.Name)
			}
		}
	}
}

// expr keeps a nil expression from becoming an interface that holds one.
func expr(e ast.Expr) any {
	if e == nil {
		return nil
	}
	return e
}

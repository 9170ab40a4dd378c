package qmp

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
)

// Check tells whether this QEMU knows a command with these arguments: their
// names, their kinds and the values of enums. It returns an *UnsupportedError
// that names the first thing it doesn't know, such as
// "migrate.channels[0].addr.transport=rdma". QEMU can still refuse the command
// for other reasons.
func (f *Features) Check(command string, args any) error {
	unsupported := func(what string) error {
		return &UnsupportedError{Feature: what, QEMU: f.Version.String()}
	}
	e := f.schema.entities[command]
	if e == nil || e.MetaType != "command" {
		return unsupported(command)
	}
	raw, err := json.Marshal(args)
	if err != nil {
		return fmt.Errorf("qmp: %s: encode arguments: %w", command, err)
	}
	var v any
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	if err := d.Decode(&v); err != nil {
		return fmt.Errorf("qmp: %s: encode arguments: %w", command, err)
	}
	if v == nil {
		v = map[string]any{}
	}
	if bad := f.schema.check(e.ArgType, v, command); bad != "" {
		return unsupported(bad)
	}
	return nil
}

// check returns what of v doesn't fit the type, or nothing.
func (s *schema) check(typ string, v any, path string) string {
	e := s.entities[typ]
	if e == nil {
		return path + " (type unknown)"
	}
	switch e.MetaType {
	case "object":
		o, ok := v.(map[string]any)
		if !ok {
			return path + " (must be an object)"
		}
		return s.checkObject(e, o, path)
	case "array":
		l, ok := v.([]any)
		if !ok {
			return path + " (must be a list)"
		}
		for i, el := range l {
			if bad := s.check(e.ElementType, el, fmt.Sprintf("%s[%d]", path, i)); bad != "" {
				return bad
			}
		}
	case "enum":
		if name, ok := v.(string); !ok || !e.hasValue(name) {
			return fmt.Sprintf("%s=%v", path, v)
		}
	case "alternate":
		for _, m := range e.Members {
			if s.check(m.Type, v, path) == "" {
				return ""
			}
		}
		return fmt.Sprintf("%s=%v", path, v)
	case "builtin":
		if !fitsJSON(e.JSONType, v) {
			return fmt.Sprintf("%s (must be %s)", path, e.JSONType)
		}
	}
	return ""
}

func (s *schema) checkObject(e *schemaEntity, o map[string]any, path string) string {
	members := slices.Clone(e.Members)
	if e.Tag != "" {
		tag, _ := o[e.Tag].(string)
		for _, v := range e.Variants {
			if variant := s.entities[v.Type]; v.Case == tag && variant != nil {
				members = append(members, variant.Members...)
				// A variant can have variants itself.
				if variant.Tag != "" {
					nested := *variant
					nested.Members = members
					return s.checkObject(&nested, o, path)
				}
			}
		}
	}
	known := map[string]string{}
	for _, m := range members {
		known[m.Name] = m.Type
		if _, given := o[m.Name]; !given && m.Default == nil {
			return path + "." + m.Name + " (is required)"
		}
	}
	for _, name := range slices.Sorted(maps.Keys(o)) {
		typ, ok := known[name]
		if !ok {
			return path + "." + name
		}
		if bad := s.check(typ, o[name], path+"."+name); bad != "" {
			return bad
		}
	}
	return ""
}

func fitsJSON(kind string, v any) bool {
	switch kind {
	case "string":
		_, ok := v.(string)
		return ok
	case "boolean":
		_, ok := v.(bool)
		return ok
	case "null":
		return v == nil
	case "number":
		_, ok := v.(json.Number)
		return ok
	case "int":
		n, ok := v.(json.Number)
		return ok && !bytes.ContainsAny([]byte(n), ".eE")
	}
	return true // "value": anything
}

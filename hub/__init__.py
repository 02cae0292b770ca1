"""Everything around the model: conversion, export, checks."""

"""Everything around the model: conversion, export, checks and the command line."""
